"""What experiments/benchmarks/aot.py reports, and properties of the programs compiled by it."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

BENCHMARKS = Path(__file__).parents[1] / "experiments" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import aot  # noqa: E402
import chips  # noqa: E402
import hlo  # noqa: E402

TINY = "--model.stage-sizes 1 1 1 1 --model.width 8 --data.crop-size 129 --batch-size 2".split()
TINY_VGG = "--model.stage-sizes 1 1 1 1 1 --model.width 4 --model.head-width 16".split()
TINY_VGG += "--data.crop-size 129 --batch-size 2".split()
TINY_SMALL = "--model.stage-sizes 1 1 1 1 --model.width 4 --data.crop-size 65".split()
VGG_PRESETS = ("vgg16_aspp_l", "table1_4x4_r8")
SCORED = (
    ("resnet101_aspp_msc", "inference"),
    ("table4_msc_coco_aug_aspp", "evaluation"),
    ("small", "evaluation"),
)
PLUGINS = {"h100": "jax_cuda12_plugin", "v5e:2x4": "libtpu"}

PROGRAM = """
HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %double = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %double)
}

%condition (p.1: (s32[], f32[4])) -> pred[] {
  %p.1 = (s32[], f32[4]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%fused (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %sum = f32[4]{0} add(%a, %a)
}

ENTRY %main (x.1: f32[4], k: bf16[3,3,8,16]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  %k = bf16[3,3,8,16]{3,2,1,0} parameter(1)
  %start = (s32[], f32[4]{0}) tuple(%x.1, %x.1)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %conv = (bf16[8,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%k, %k), \
window={size=41x41 stride=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(f)/transpose(jvp(N))/trunk/res4_1/branch2b/conv_general_dilated"}
  %all-reduce = f32[4]{0} all-reduce(%x.1), replica_groups={}, to_apply=%fused
  ROOT %scatter = f32[4]{0} scatter(%x.1, %x.1, %x.1), to_apply=%fused
}
"""


def test_kernels_count_once_and_launches_every_turn_of_a_loop():
    found = hlo.summary(PROGRAM, {})
    assert found["kernels"] == 4  # fusion, custom call, all-reduce, scatter
    assert found["launches"] == 5 + 3
    assert (found["fusions"], found["float_scatters"]) == (1, 1)
    assert found["collectives"] == {"all-reduce": 16}
    of_kernel, of_vector = 3 * 3 * 8 * 16 * 2, 4 * 4
    in_loop = 5 * 2 * of_vector
    assert found["bytes"] == in_loop + 3 * of_kernel + 2 * of_vector + 4 * of_vector


def test_turns_of_a_loop_are_read_from_its_condition_where_a_tpu_does_not_state_them():
    stated = ', \\\nbackend_config={"known_trip_count":{"n":"5"}}'.replace("\\\n", "")
    always = "  ROOT %yes = pred[] constant(true)"
    assert stated in PROGRAM and always in PROGRAM
    counted = (
        "  %counter = s32[] get-tuple-element(%p.1), index=0\n  %bound = s32[] constant(5)\n"
        "  ROOT %less = pred[] compare(%counter, %bound), direction=LT"
    )
    text = PROGRAM.replace(stated, "").replace(always, counted)
    found, expected = hlo.summary(text, {}), hlo.summary(PROGRAM, {})
    compares = 5  # which a loop that states its turns has too
    assert found["launches"] == expected["launches"] + compares
    assert expected["repeated_bytes"] == 4 * 2 * 16
    text = PROGRAM.replace(stated, "")  # neither
    assert hlo.summary(text, {})["repeated_bytes"] == 0


def test_a_collective_counts_what_a_device_gives_to_it():
    begun = "%start-reduce = f32[4]{0} all-reduce-start(%x.1), replica_groups={}, to_apply=%fused"
    ended = "%all-reduce = f32[4]{0} all-reduce-done(%start-reduce)"
    at_once = "%all-reduce = f32[4]{0} all-reduce(%x.1), replica_groups={}, to_apply=%fused"
    assert at_once in PROGRAM
    text = PROGRAM.replace(at_once, f"{begun}\n  {ended}")
    assert hlo.summary(text, {})["collectives"] == {"all-reduce": 16}


def test_a_window_above_its_own_kernel_is_found():
    (found,) = hlo.convolutions(hlo.read(PROGRAM), {"trunk/res4_1/branch2b": (3, 3, 8, 16)})
    assert (found.gradient, found.window, found.stride) == ("weight gradient", (41, 41), (2, 2))
    assert (found.kernel, found.exceeds_kernel) == (3, True)


def test_a_weight_gradient_with_a_further_dimension_of_one_is_found():
    text = PROGRAM.replace("(bf16[8,3,3,16]{3,2,1,0}, u8[0]{0})", "bf16[3,3,8,16,1]{4,3,2,1,0}")
    (found,) = hlo.convolutions(hlo.read(text), {"trunk/res4_1/branch2b": (3, 3, 8, 16)})
    assert found.gradient == "weight gradient"


def test_the_convolution_of_a_compiled_program_is_found():
    x, kernel = jnp.zeros((2, 9, 9, 4)), jnp.zeros((3, 3, 4, 5))
    conv = jax.jit(lambda x, k: jax.lax.conv(x.transpose(0, 3, 1, 2), k.T, (1, 1), "SAME"))
    text = conv.lower(x, kernel).compile().as_text()
    (found,) = hlo.summary(text, {})["convolutions"]
    assert (found["gradient"], found["window"]) == ("forward", [3, 3])


def test_flop_of_a_convolution_and_of_a_scanned_product():
    def work(x, kernel, matrix):
        y = jax.lax.conv(x, kernel, (1, 1), "SAME")
        return y, jax.lax.scan(lambda m, _: (m @ matrix, None), matrix, length=3)

    shapes = [(2, 4, 9, 9), (5, 4, 3, 3), (7, 7)]
    jaxpr = jax.make_jaxpr(work)(*(jnp.zeros(s) for s in shapes)).jaxpr
    assert aot.flop_of(jaxpr) == 2 * (2 * 5 * 81) * (4 * 9) + 3 * 2 * 7**3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["h200", "small"], "there is no target h200; chips are h100,"),
        (["h100", "smal"], "there is no preset smal;"),
        (["h100"], "usage: aot.py TARGET PRESET"),
    ],
)
def test_a_mistake_is_a_sentence(words, sentence):
    with pytest.raises(SystemExit, match=sentence):
        aot.parse(words)


def test_presets_of_the_tests_that_need_a_compiler_exist():
    for preset in (*VGG_PRESETS, *(preset for preset, _ in SCORED)):
        assert aot.parse(["h100", preset])[1] == preset


def test_a_cell_that_does_not_end_says_so_and_is_not_tried_again(tmp_path, capsys):
    results = tmp_path / "accelerators.jsonl"
    words = f"h100 small --programs update --limit 0.1 --results {results}".split()
    aot.main(words)
    assert "did not end within 0.1 CPU s" in capsys.readouterr().out
    assert "no end in 0.1 CPU s" in results.with_suffix(".md").read_text()
    aot.main(words)
    assert len(aot.read_lines(results)) == 1


def test_a_tpu_compiler_is_given_no_blank_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", " ")  # libtpu would take it for the name of a file
    assert "XLA_FLAGS" not in chips.environment("v5e:2x4")
    assert chips.environment("v5e:2x4", "--xla_a=1")["XLA_FLAGS"].strip() == "--xla_a=1"


def test_an_option_that_a_line_of_results_lacks_has_its_default(tmp_path):
    results = tmp_path / "accelerators.jsonl"
    cell = {"target": "h100", **aot.DEFAULTS}
    older = {name: value for name, value in cell.items() if name != "mapped_by"}
    results.write_text(json.dumps({"cell": older, "seconds": 1.0}))
    assert aot.is_done(results, cell, limit=1)
    assert not aot.is_done(results, cell | {"mapped_by": "shard_map"}, limit=1)


@functools.cache
def compiled(target, preset, *options, program="update"):
    """What aot.py reports of one program; skips where its compiler is missing."""
    plugin = PLUGINS[target]
    if importlib.util.find_spec(plugin) is None:
        pytest.skip(f"the compiler for {target} is missing ({plugin}): pip install -e '.[aot]'")
    command = [sys.executable, BENCHMARKS / "aot.py", target, preset, "--programs", program]
    command += ["--limit", "900", *options]
    # The flags that conftest.py sets are for CPUs; libtpu refuses them.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert "seconds" in result, result
    return result


def assert_update_suits_a_gpu(result):
    assert result["windows_above_kernel"] == 0
    assert result["largest_window"] <= 7  # of conv1; no convolution has the map as its window
    assert result["float_scatters"] == 0
    assert result["memory"]["alias"] >= result["state_bytes"]
    assert result["custom_calls"]["__cudnn$convBackwardFilter"] > 0


@pytest.mark.aot
@pytest.mark.parametrize(
    ("dtype", "alignment"), [("float32", "corners"), ("bfloat16", "half_pixel")]
)
def test_an_update_with_multi_scale_inputs_suits_an_h100(dtype, alignment):
    options = (*TINY, "--model.dtype", dtype, "--model.alignment", alignment)
    assert_update_suits_a_gpu(compiled("h100", "resnet101_aspp_msc", *options))


@pytest.mark.aot
@pytest.mark.parametrize("preset", VGG_PRESETS)
def test_an_update_of_vgg_suits_an_h100(preset):
    result = compiled("h100", preset, *TINY_VGG)
    assert result["windows_above_kernel"] == result["float_scatters"] == 0
    assert result["memory"]["alias"] >= result["state_bytes"]


@pytest.mark.aot
def test_an_update_with_trained_norm_suits_an_h100():
    assert_update_suits_a_gpu(compiled("h100", "small", *TINY_SMALL))


@pytest.mark.aot
def test_an_update_that_accumulates_keeps_one_state_on_an_h100():
    result = compiled("h100", "small", *TINY_SMALL, "--photographs", "1")
    assert result["accumulation"] == 8
    assert result["memory"]["alias"] >= result["state_bytes"]


@pytest.mark.aot
def test_a_deterministic_update_compiles_for_an_h100():
    assert_update_suits_a_gpu(compiled("h100", "small", *TINY_SMALL, "--deterministic", "True"))


@pytest.mark.aot
def test_the_check_of_an_update_costs_an_h100_a_tenth_of_its_kernels_at_most():
    checked = compiled("h100", "small", *TINY_SMALL)
    unchecked = compiled("h100", "small", *TINY_SMALL, "--unchecked", "True")
    assert unchecked["kernels"] < checked["kernels"] <= 1.1 * unchecked["kernels"]


@pytest.mark.aot
@pytest.mark.parametrize(("preset", "program"), SCORED)
def test_photographs_of_any_size_are_scored_on_an_h100(program, preset):
    options = TINY if preset != "small" else TINY_SMALL
    result = compiled("h100", preset, *options, program=program)
    assert result["windows_above_kernel"] == 0


@pytest.mark.aot
@pytest.mark.parametrize("target", PLUGINS)
def test_eight_devices_add_up_each_gradient_once(target):
    result = compiled(target, "small", *TINY_SMALL, "--devices", "8")
    parameters = result["state_bytes"] / 2  # the rest is momentum, and batch statistics
    assert result["devices"] == 8
    assert result["memory"]["alias"] >= result["state_bytes"]
    assert 0.9 * parameters <= result["collectives"]["all-reduce"] <= 1.1 * parameters
