import os
import subprocess
import sys

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
