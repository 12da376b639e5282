"""Eight simulated devices for the whole suite, networks small enough for it, real photographs."""

import fcntl
import importlib
import os
import shutil
import sys
from pathlib import Path

# Compiling is what most tests wait for, also in the processes that they start: XLA leaves out its
# slower optimisations and emits loops the older way, which takes a third of the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax  # reads the variable
import jax.numpy as jnp
import numpy as np
import pytest

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
# jaxlib 0.12 has only the newer loops, and ends a process that names the flag.
OLDER_LOOPS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), EIGHT_DEVICES, OLDER_LOOPS])
jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session")
def draw_variables():
    """(model, crop_size) -> variables drawn by NumPy, which no compiler has to be asked for.

    Every scale is positive and no kernel is small, so that each layer matters to the result;
    from scratch the last batch norm of a block is 0 and half of the network would be untested.
    """
    from deeplab_jax import train

    def draw(model, crop_size=33):
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(
            lambda: train.init_variables(model, jax.random.key(0), crop_size=crop_size)
        )

        def leaf(path, like):
            name = path[-1].key
            if name in ("scale", "var"):
                return jnp.asarray(rng.uniform(0.5, 1.5, like.shape), like.dtype)
            fan_in = np.prod(like.shape[:-1]) if name == "kernel" else 100
            return jnp.asarray(rng.normal(0, fan_in**-0.5, like.shape), like.dtype)

        return dict(jax.tree_util.tree_map_with_path(leaf, shapes))

    return draw


@pytest.fixture
def users_compilation():
    """Programs are compiled as users' are: for tests of what the compiler makes of them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def script(monkeypatch, tmp_path):
    """(name, words) -> exit status of a script that runs in this process, in an empty folder."""
    import cli

    from deeplab_jax import presets

    monkeypatch.chdir(tmp_path)

    def call(name, *words):
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        try:
            if name == "train_voc":
                asked = cli.parse_preset(presets.PRESETS, presets.DEFAULT_PRESET, module.__doc__)
            else:
                asked = cli.parse(module.Options, module.__doc__)
            cli.run(module.main, asked)
        except SystemExit as end:
            return end.code or 0
        return 0

    return call


@pytest.fixture
def root(tmp_path) -> Path:
    """A data set to spoil: photographs c, a and b to train on, d for validation."""
    from drawn_folder import draw_folder

    return draw_folder(tmp_path / "data")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real photographs; asking for it without naming one is a failure, no skip."""
    folder = os.environ.get("DEEPLAB_JAX_DATA")
    if not folder:
        pytest.fail("tests marked data need DEEPLAB_JAX_DATA, the folder of real photographs")
    return Path(folder)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """See `folder`: `data`, a finished run on them in `whole`, and its output.

    The first process of pytest-xdist to ask for it trains the run (runs_with_faults.TINY); the
    others wait for the lock.
    """
    import runs_with_faults

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # the processes have a folder each in it
    folder = root / "trained_run"
    with open(root / "trained_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            made = tmp_path_factory.mktemp("trained_run")
            runs_with_faults.draw_data(made / "data")
            (made / "output.txt").write_text(runs_with_faults.run(made, "whole"))
            made.rename(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained_run) -> Path:
    """A copy of it for the tests of a file."""
    return shutil.copytree(trained_run, tmp_path_factory.mktemp("folder"), dirs_exist_ok=True)
