"""Pooling and the end of a residual block: the values of their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.ops import norm, plain, pooling


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(9, 12), (12, 13), (1, 2)])
def test_pooling_equals_the_plain_one_where_pixels_tie_too(shape, stride, kernel):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-1, 3, size=(2, *shape, 3)), jnp.float32)
    y = plain.max_pool(x, kernel=kernel, stride=stride)
    gradient = jnp.asarray(rng.integers(-9, 9, size=y.shape), jnp.float32)
    found, expected = (
        jax.vjp(partial(f, kernel=kernel, stride=stride), x)[1](gradient)[0]
        for f in (pooling.max_pool, plain.max_pool)
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(pooling.max_pool(x, kernel=kernel, stride=stride), y)


def test_the_end_of_a_block_equals_the_plain_one():
    x, y, cotangent = np.random.default_rng(0).normal(size=(3, 2, 5, 7, 3)).astype(np.float32)
    found, expected = (
        jax.jit(lambda x, y, g, f=f: (f(x, y), jax.vjp(f, x, y)[1](g)))(x, y, cotangent)
        for f in (norm.add_relu, plain.add_relu)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_sums_of_a_residual_network_are_kept_not_computed_again():
    kernels = jnp.zeros((12, 16, 16))

    def blocks(add_relu, x):
        for kernel in kernels:
            x = add_relu(x, x @ kernel)
        return x

    x = jnp.zeros((1, 64, 64, 16))
    memory = [
        jax.jit(partial(blocks, f)).lower(x).compile().memory_analysis().temp_size_in_bytes
        for f in (norm.add_relu, plain.add_relu)
    ]
    assert memory[0] < 5 * x.nbytes < memory[1], "does XLA still heed inlineable=false?"
