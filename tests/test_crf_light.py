"""The CRF where only jax, jaxtyping and pillow are installed."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("crf_light.py")


def test_the_crf_needs_jax_jaxtyping_and_pillow_alone():
    result = subprocess.run(
        [sys.executable, SCRIPT, "--refuse"],
        cwd=SCRIPT.parents[1],
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    missing, refined = result.stdout.splitlines()
    assert "deeplab_jax.load needs the package" in missing and "pip install ." in missing
    assert refined == "refined"


def test_the_torch_layer_without_torch_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "deeplab_jax.crf.torch", raising=False)
    with pytest.raises(ImportError, match="pip install torch"):
        importlib.import_module("deeplab_jax.crf.torch")
