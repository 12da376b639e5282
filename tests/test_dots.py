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


def both_ways(shape, kernel_size, channels, *, rate, stride, ours=dots.atrous_conv):
    """Value and gradients by (ours, layers), each compiled as one program."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *shape, channels[0])))
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, *channels)))
    out = jax.eval_shape(lambda: layers.atrous_conv(x, kernel, rate=rate, stride=stride))
    cotangent = jnp.asarray(rng.normal(size=out.shape))

    def run(convolve):
        y, transpose = jax.vjp(lambda *a: convolve(*a, rate=rate, stride=stride), x, kernel)
        return y, *transpose(cotangent)

    return jax.jit(lambda: (run(ours), run(layers.atrous_conv)))()


def assert_same(pair):
    for ours, theirs in zip(*pair, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


@pytest.mark.parametrize("rate", range(1, 25))
@pytest.mark.parametrize("channels", [NARROW, WIDE])
def test_dots_equal_the_convolution_at_every_rate(channels, rate):
    with jax.enable_x64(True):
        assert_same(both_ways((9, 12), 3, channels, rate=rate, stride=1))


def without_stride(convolve):
    return lambda x, kernel, *, rate, stride: convolve(x, kernel, rate)


@pytest.mark.parametrize("rate", [1, 2, 3, 5, 12, 24])
@pytest.mark.parametrize(("shape", "channels"), [((9, 12), (4, 5)), ((8, 1), (5, 4))])
@pytest.mark.parametrize("convolve", [dots._winograd, dots._by_taps])
def test_few_products_equal_the_convolution(convolve, shape, channels, rate):
    with jax.enable_x64(True):
        ours = without_stride(convolve)
        assert_same(both_ways(shape, 3, channels, rate=rate, stride=1, ours=ours))


@pytest.mark.parametrize(("kernel_size", "rate"), [(7, 1), (7, 4), (4, 4), (4, 8), (4, 30)])
@pytest.mark.parametrize("convolve", [dots._by_taps, dots._with_fewest_products])
def test_products_for_each_tap_equal_the_convolution_for_every_kernel(convolve, kernel_size, rate):
    with jax.enable_x64(True):
        ours = without_stride(convolve)
        assert_same(both_ways((9, 12), kernel_size, WIDE, rate=rate, stride=1, ours=ours))


def test_winograd_rounds_no_worse_than_twice_the_convolution():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 41, 41, 256)), rng.normal(size=(3, 3, 256, 256))
    with jax.enable_x64(True):
        exact = np.asarray(layers.atrous_conv(jnp.asarray(x), jnp.asarray(kernel), rate=2))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    ours, plain = (
        np.square(np.asarray(f(x, kernel, rate=2)) - exact).mean() ** 0.5
        for f in (dots._winograd, layers.atrous_conv)
    )
    assert ours < 2 * plain < 1e-5 * np.std(exact)


CHOICES = [
    (81, 64, 64, 1, "_by_rows"),
    (81, 128, 256, 1, "_winograd"),
    (321, 64, 64, 1, "_by_rows"),
    (41, 256, 256, 2, "_winograd"),
    (65, 256, 256, 2, "_winograd"),
    (41, 512, 512, 4, "_winograd"),
    (41, 512, 1024, 6, "_winograd"),
    (41, 512, 1024, 12, "_by_taps"),
    (41, 512, 1024, 18, "_by_taps"),
    (41, 512, 1024, 24, "_by_taps"),
    (41, 2048, 21, 24, "_narrow"),
]


@pytest.mark.parametrize(("side", "channels", "features", "rate", "expected"), CHOICES)
def test_the_layers_of_the_paper_take_the_fastest_way(
    monkeypatch, side, channels, features, rate, expected
):
    taken = []

    def stand_in(name, x, kernel, *_):
        taken.append(name)
        return jnp.zeros((*x.shape[:3], kernel.shape[3]))

    for name in ("_by_rows", "_by_taps", "_winograd", "_narrow"):
        monkeypatch.setattr(dots, name, partial(stand_in, name))
    x, kernel = jnp.zeros((1, side, side, channels)), jnp.zeros((3, 3, channels, features))
    dots.atrous_conv(x, kernel, rate=rate)
    assert taken == [expected]


def test_a_short_convolution_is_not_winograds_where_gradients_are_taken():
    x, kernel = jnp.zeros((1, 41, 41, 256)), jnp.zeros((3, 3, 256, 256))

    def products(function):
        return jax.jit(function).lower(x, kernel).as_text().count("stablehlo.dot_general")

    convolve = partial(dots.atrous_conv, rate=2)
    assert products(convolve) == 16
    assert products(jax.grad(lambda x, k: convolve(x, k).sum(), argnums=(0, 1))) == 1


def test_half_precision_is_kept_from_winograd():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 65, 65, 256)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 256, 256)), jnp.bfloat16)
    found, expected = (f(x, kernel, rate=2) for f in (dots.atrous_conv, layers.atrous_conv))
    np.testing.assert_array_equal(found, expected)


KERNELS = [(1, 1, 1), (1, 1, 2), (4, 2, 2), (7, 1, 2), *product((4, 7), (4, 8, 12), (1,))]


@pytest.mark.parametrize("channels", [NARROW, WIDE, IMAGE])
@pytest.mark.parametrize(("kernel_size", "rate", "stride"), KERNELS)
def test_dots_equal_the_convolution_for_every_kernel(channels, kernel_size, rate, stride):
    with jax.enable_x64(True):
        shape = (12, 9) if rate % 4 else (9, 12)
        assert_same(both_ways(shape, kernel_size, channels, rate=rate, stride=stride))


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("shape", [(9, 12), (12, 13), (1, 2)])
def test_pooling_equals_the_plain_one_where_pixels_tie_too(shape, stride, kernel):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-1, 3, size=(2, *shape, 3)), jnp.float32)
    y = layers.max_pool(x, kernel=kernel, stride=stride)
    gradient = jnp.asarray(rng.integers(-9, 9, size=y.shape), jnp.float32)
    found, expected = (
        jax.vjp(partial(f, kernel=kernel, stride=stride), x)[1](gradient)[0]
        for f in (dots.max_pool, layers.max_pool)
    )
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(dots.max_pool(x, kernel=kernel, stride=stride), y)


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


def test_equal_convolutions_of_a_network_are_lowered_once():
    x, kernel = jnp.zeros((1, 16, 16, 4)), jnp.zeros((3, 3, 4, 4))

    def blocks(x):
        for _ in range(8):
            x = jax.nn.relu(dots._winograd(x, kernel, 2))
        return x

    text = jax.jit(blocks).lower(x).as_text()
    assert text.count("stablehlo.dot_general") == 16


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
