"""Pooling and the end of a residual block: the values of their definitions."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.ops import norm, plain, pooling


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)])
def test_pooling_equals_the_plain_one_where_pixels_tie_too(kernel, stride):
    rng = np.random.default_rng(0)
    sizes = {"kernel": kernel, "stride": stride}
    for shape in [(9, 12), (12, 13), (1, 2)]:
        x = jnp.asarray(rng.integers(-1, 3, size=(2, *shape, 3)), jnp.float32)
        out = jax.eval_shape(partial(plain.max_pool, **sizes), x)
        gradient = jnp.asarray(rng.integers(-9, 9, size=out.shape), jnp.float32)
        assert_equal_with_gradients(pooling.max_pool, plain.max_pool, (x,), gradient, **sizes)


def assert_equal_with_gradients(ours, theirs, arrays, gradient, **options):
    def both(arrays, gradient, function):
        value, transpose = jax.vjp(partial(function, **options), *arrays)
        return value, transpose(gradient)

    found, expected = (
        jax.jit(partial(both, function=function))(arrays, gradient) for function in (ours, theirs)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_end_of_a_block_equals_the_plain_one():
    x, y, gradient = np.random.default_rng(0).normal(size=(3, 2, 5, 7, 3)).astype(np.float32)
    assert_equal_with_gradients(norm.add_relu, plain.add_relu, (x, y), gradient)


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
