"""Compiled programs: what is kept of them, and what benchmarks/compile.py reports."""

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

from deeplab_jax import compilation

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from deeplab_jax import compilation
from deeplab_jax.ops.convolution_cpu import WINOGRAD

def held():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024

def network(x, kernel):
    for rate in range(1, 9):
        x = jax.nn.relu(WINOGRAD.value(x, kernel, rate, 1))
    return x.sum()

if sys.argv[1] == "release":
    compilation.release_compiler_memory()
arrays = (jax.ShapeDtypeStruct(s, "float32") for s in ((1, 48, 48, 8), (3, 3, 8, 8)))
lowered = jax.jit(jax.value_and_grad(network)).lower(*arrays)
before = held()
lowered.compile()
print(held() - before)
"""


def left_by_the_compiler(mode):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", PROGRAM, mode]
    return float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and needs glibc")
def test_memory_freed_by_the_compiler_returns_to_the_system():
    kept, released = (left_by_the_compiler(mode) for mode in ("keep", "release"))
    assert released < 0.7 * kept, (kept, released)


def test_without_a_home_folder_a_note_says_that_programs_are_not_kept(monkeypatch, capsys):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)  # as in a container with --user 54321
    compilation.enable_compilation_cache()
    err = capsys.readouterr().err
    assert err.startswith("note: there is no home folder") and "XDG_CACHE_HOME" in err


DETERMINISTIC = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from deeplab_jax import compilation
compilation.enable_compilation_cache()
jax.jit(lambda x: 2 * x)(jnp.ones(3))
compilation.make_deterministic(Path(sys.argv[1]))
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
"""


def test_a_deterministic_run_finds_the_programs_of_a_folder_that_was_copied(tmp_path):
    found = []
    for name in ("one", "two"):
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", DETERMINISTIC, str(tmp_path / name)]
        subprocess.run(command, env=environment, capture_output=True, check=True)
        found.append(sorted(path.name for path in (tmp_path / name).glob("*-cache")))
    assert found[0] == found[1] and any("lambda" in name for name in found[0])


SCRIPT = Path(__file__).parents[1] / "experiments" / "benchmarks" / "compile.py"
spec = importlib.util.spec_from_file_location("compile_for", SCRIPT)  # compile is a built-in
compile_for = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compile_for)

HLO = """
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
    assert compile_for.summary(HLO, {"trunk/res4_1/branch2b": 3}) == {
        "kernels": 5,  # fusion, custom call, both all-reduces, scatter
        "largest_window": 41,
        "windows_above_kernel": 1,
        "float_scatters": 1,
        "all_reduced": 32,
    }
    assert compile_for.summary(HLO, {"trunk/res4_1/branch2b": 41})["windows_above_kernel"] == 0


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
        ("camvid_small", TINY_SMALL),
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
