"""Eight simulated devices for the whole suite, and the folder of real photographs."""

import os
from pathlib import Path

import jax
import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real photographs; asking for it without naming one is a failure, no skip."""
    folder = os.environ.get("DEEPLAB_JAX_DATA")
    if not folder:
        pytest.fail("tests marked data need DEEPLAB_JAX_DATA, the folder of real photographs")
    return Path(folder)
