"""What benchmarks/compile.py reports, and rules of the programs that it compiles."""

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

SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "compile.py"
spec = importlib.util.spec_from_file_location("compile_for", SCRIPT)  # compile is a built-in
compile_for = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compile_for)

PROGRAM = """
HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %double = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[4]{0}) tuple(%i, %double)
}

%fused (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %sum = f32[4]{0} add(%a, %a)
}

ENTRY %main (x.1: f32[4], k: bf16[3,3,8,16]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  %k = bf16[3,3,8,16]{3,2,1,0:T(8,128)} parameter(1)
  %start = (s32[], f32[4]{0}) tuple(%x.1, %x.1)
  %loop = (s32[], f32[4]{0}) while(%start), condition=%condition, body=%body
  %conv = (bf16[8,3,3,16]{3,2,1,0}, u8[0]{0}) custom-call(%k, %k), \
window={size=41x41 stride=2x2}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(f)/transpose(jvp(N))/trunk/res4_1/branch2b/conv_general_dilated"}
  %all-reduce = f32[4]{0} all-reduce(%x.1), replica_groups={}, to_apply=%fused
  %begun = f32[4]{0} all-reduce-start(%x.1), replica_groups={}, to_apply=%fused
  %done = f32[4]{0} all-reduce-done(%begun)
  ROOT %scatter = f32[4]{0} scatter(%x.1, %x.1, %x.1), to_apply=%fused
}
"""


def test_what_a_program_starts_is_counted_and_its_windows_and_scatters_are_found():
    assert compile_for.summary(PROGRAM, {"trunk/res4_1/branch2b": 3}) == {
        "kernels": 5,  # fusion, custom call, both all-reduces, scatter
        "largest_window": 41,
        "windows_above_kernel": 1,
        "float_scatters": 1,
        "all_reduced": 32,
    }
    assert compile_for.summary(PROGRAM, {"trunk/res4_1/branch2b": 41})["windows_above_kernel"] == 0


def test_the_convolution_of_a_compiled_program_is_found():
    x, kernel = jnp.zeros((2, 4, 9, 9)), jnp.zeros((5, 4, 3, 3))
    conv = jax.jit(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"))
    found = compile_for.summary(conv.lower(x, kernel).compile().as_text(), {})
    assert found["largest_window"] == 3 and found["kernels"] > 0


GOOD = {"program": "update", "windows_above_kernel": 0, "float_scatters": 0, "alias": 9, "state": 9}
GOOD |= {"devices": 8, "all_reduced": 100, "gradients": 100}


@pytest.mark.parametrize(
    ("changes", "target", "number"),
    [
        ({}, "h100", 0),
        ({"windows_above_kernel": 1}, "h100", 1),
        ({"windows_above_kernel": 1}, "v5e:2x4", 0),  # its weight gradients have the map's window
        ({"float_scatters": 2}, "h100", 1),
        ({"program": "prediction", "float_scatters": 2}, "h100", 0),
        ({"alias": 8}, "v5e:2x4", 1),
        ({"all_reduced": 200}, "v5e:2x4", 1),
        ({"all_reduced": 0, "devices": 1}, "h100", 0),
    ],
)
def test_a_broken_rule_is_told(changes, target, number):
    assert len(compile_for.broken_rules({**GOOD, **changes}, target)) == number


TINY = "--model.stage-sizes 1 1 1 1 --model.width 8 --data.crop-size 129 --batch-size 2".split()
TINY_VGG = "--model.stage-sizes 1 1 1 1 1 --model.width 4 --model.head-width 16".split()
TINY_SMALL = "--model.stage-sizes 1 1 1 1 --model.width 4 --data.crop-size 65".split()
PLUGINS = {"h100": "jax_cuda12_plugin", "v5e:2x4": "libtpu"}


@functools.cache
def compiled(target, preset, *changes, program="update", devices=None):
    """What compile.py reports of a program that keeps its rules; skips without its compiler."""
    plugin = PLUGINS[target]
    if importlib.util.find_spec(plugin) is None:
        pytest.skip(f"the compiler for {target} is missing ({plugin}): pip install -e '.[aot]'")
    command = [sys.executable, SCRIPT, target, preset, "--programs", program]
    command += ["--devices", str(devices)] if devices else []
    # The flags that conftest.py sets are for CPUs; libtpu refuses them.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, "--", *changes], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.aot
@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("resnet101_aspp_msc", [*TINY, "--model.alignment", "corners"]),
        ("resnet101_aspp_msc", [*TINY, "--model.dtype", "bfloat16"]),
        ("vgg16_aspp_l", [*TINY_VGG, *TINY[-4:]]),
        ("table1_4x4_r8", [*TINY_VGG, *"--data.crop-size 130 --batch-size 2".split()]),
        ("small", TINY_SMALL),
    ],
)
def test_an_update_suits_an_h100(preset, changes):
    assert compiled("h100", preset, *changes)["largest_window"] <= 7  # of conv1


@pytest.mark.aot
@pytest.mark.parametrize(
    ("preset", "changes"),
    [("resnet101_aspp_msc", TINY), ("table4_msc_coco_aug_aspp", TINY), ("small", TINY_SMALL)],
)
def test_a_prediction_suits_an_h100(preset, changes):
    assert compiled("h100", preset, *changes, program="prediction")["kernels"] > 0


@pytest.mark.aot
@pytest.mark.parametrize("target", PLUGINS)
def test_eight_devices_add_up_each_gradient_once(target):
    assert compiled(target, "small", *TINY_SMALL, devices=8)["devices"] == 8
