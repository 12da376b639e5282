import jax
import numpy as np
import pytest
from tiny_networks import resnet

from deeplab_jax import diagnosis
from deeplab_jax.types import Batch

MODEL = resnet()


@pytest.fixture
def batch():
    """One device, two accumulation steps of a photograph each."""
    image = np.random.default_rng(0).integers(0, 256, (1, 2, 1, 33, 33, 3), np.uint8)
    return Batch(image=image, labels=None, sample=np.arange(2, dtype=np.int32).reshape(1, 2, 1))


@pytest.mark.parametrize("spoilt", [None, "head/fc8_2"])
def test_the_first_layer_that_is_not_finite_is_named(draw_variables, batch, spoilt):
    def spoil(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf * np.inf if spoilt and name == f"params/{spoilt}/kernel" else leaf

    variables = jax.tree_util.tree_map_with_path(spoil, draw_variables(MODEL))
    assert diagnosis.first_non_finite_layer(MODEL, variables, batch) == spoilt


def test_a_photograph_of_a_later_accumulation_step_is_found(draw_variables, batch, monkeypatch):
    make_inputs = diagnosis.make_inputs

    def poison(image, mean):
        return make_inputs(image, mean) / (image[0, 0, 0, 0] != 7)

    monkeypatch.setattr(diagnosis, "make_inputs", poison)
    batch.image[0, 0, 0, 0, 0, 0] = 8
    batch.image[0, 1, 0, 0, 0, 0] = 7
    variables = draw_variables(MODEL)
    assert diagnosis.first_non_finite_layer(MODEL, variables, batch) == "trunk/conv1"
