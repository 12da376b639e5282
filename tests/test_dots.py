from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.models import dots, layers

NARROW, WIDE, IMAGE = (5, 2), (4, 5), (3, 4)
"""Channels in and out: each takes another way through models.dots."""


def pads_evenly(kernel_size, rate):
    """Whether the padding is the same on both sides; VGG's 4x4 heads have even rates."""
    return rate * (kernel_size - 1) % 2 == 0


def both_ways(shape, kernel_size, channels, *, rate, stride):
    """Value and gradients by (dots, layers), each compiled as one program."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *shape, channels[0])))
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, *channels)))
    out = jax.eval_shape(lambda: layers.atrous_conv(x, kernel, rate=rate, stride=stride))
    cotangent = jnp.asarray(rng.normal(size=out.shape))

    def run(convolve):
        y, transpose = jax.vjp(lambda *a: convolve(*a, rate=rate, stride=stride), x, kernel)
        return y, *transpose(cotangent)

    return jax.jit(lambda: (run(dots.atrous_conv), run(layers.atrous_conv)))()


def assert_same(pair):
    for ours, theirs in zip(*pair, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


@pytest.mark.parametrize("rate", range(1, 25))
@pytest.mark.parametrize("channels", [NARROW, WIDE])
def test_dots_equal_the_convolution_at_every_rate(channels, rate):
    with jax.enable_x64(True):
        assert_same(both_ways((9, 12), 3, channels, rate=rate, stride=1))


KERNELS = [(1, 1, 1), (1, 1, 2), (4, 2, 2), (7, 1, 2), *product((4, 7), (4, 8, 12), (1,))]


@pytest.mark.parametrize("channels", [NARROW, WIDE, IMAGE])
@pytest.mark.parametrize(("kernel_size", "rate", "stride"), KERNELS)
def test_dots_equal_the_convolution_for_every_kernel(channels, kernel_size, rate, stride):
    with jax.enable_x64(True):
        shape = (12, 9) if rate % 4 else (9, 12)
        assert_same(both_ways(shape, kernel_size, channels, rate=rate, stride=stride))


def test_the_end_of_a_block_equals_the_plain_one():
    x, y, cotangent = np.random.default_rng(0).normal(size=(3, 2, 5, 7, 3)).astype(np.float32)
    found, expected = (
        jax.jit(lambda x, y, g, f=f: (f(x, y), jax.vjp(f, x, y)[1](g)))(x, y, cotangent)
        for f in (dots.add_relu, layers.add_relu)
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
        for f in (dots.add_relu, layers.add_relu)
    ]
    assert memory[0] < 5 * x.nbytes < memory[1], "does XLA still heed inlineable=false?"


@pytest.mark.slow
@pytest.mark.parametrize("channels", [NARROW, WIDE])
@pytest.mark.parametrize("shape", [(8, 13), (13, 8)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 4, 7])
@pytest.mark.parametrize("rate", range(1, 25))
def test_dots_equal_the_convolution_in_every_combination(
    rate, kernel_size, stride, shape, channels
):
    if not pads_evenly(kernel_size, rate):
        rate += 1
    with jax.enable_x64(True):
        assert_same(both_ways(shape, kernel_size, channels, rate=rate, stride=stride))
