"""The forms of convolutions for CPUs and for GPUs, which run on CPUs too, against definitions."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.ops import convolution_cpu, convolution_gpu, plain, xla
from deeplab_jax.ops.convolution import atrous_conv
from deeplab_jax.ops.convolution_cpu import BY_ROWS, BY_TAPS, POINTWISE, WINOGRAD

TO_FEW, TO_MANY, OF_IMAGE = (5, 2), (4, 5), (3, 4)
"""Channels in and out: each takes another form."""

CASES = [
    *((3, rate, 1) for rate in (1, 2, 4, 6, 12, 18, 24)),  # the paper's
    *((1, 1, 1), (1, 1, 2), (4, 2, 2), (7, 1, 2), *product((4, 7), (4, 8, 12), (1,))),
]
ALL = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in product((1, 3, 4, 7), range(1, 25), (1, 2))
    if case not in CASES and case[1] * (case[0] - 1) % 2 == 0  # padded the same on both sides
]


def chosen(x, kernel, gradient, *, rate, stride):
    """Value and gradients by the form that the module chooses where gradients are taken."""
    sizes = {"rate": rate, "stride": stride}
    return (
        convolution_cpu.training(x, kernel, **sizes),
        *convolution_cpu.gradients(x, kernel, gradient, **sizes),
    )


def by(form):
    def run(x, kernel, gradient, *, rate, stride):
        value = form.value(x, kernel, rate, stride)
        return value, *form.gradients(x, kernel, gradient, rate, stride)

    return run


def ours_and_plain(shape, kernel_size, channels, *, rate, stride, ours=chosen):
    """Value and gradients by (ours, definition), each compiled as one program."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *shape, channels[0])))
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, *channels)))
    sizes = {"rate": rate, "stride": stride}
    out = jax.eval_shape(partial(plain.atrous_conv, **sizes), x, kernel)
    gradient = jnp.asarray(rng.normal(size=out.shape))

    def defined():
        value, transpose = jax.vjp(partial(plain.atrous_conv, **sizes), x, kernel)
        return value, *transpose(gradient)

    return jax.jit(lambda: (ours(x, kernel, gradient, **sizes), defined()))()


def assert_same(pair):
    """The weight gradient comes last, and may be alone."""
    ours, defined = pair
    for found, expected in zip(ours, defined[-len(ours) :], strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("channels", [TO_FEW, TO_MANY, OF_IMAGE])
@pytest.mark.parametrize(("kernel_size", "rate", "stride"), [*CASES, *ALL])
def test_the_form_chosen_equals_the_definition(channels, kernel_size, rate, stride):
    shape = (12, 9) if rate % 4 else (9, 12)
    with jax.enable_x64(True):
        assert_same(ours_and_plain(shape, kernel_size, channels, rate=rate, stride=stride))


@pytest.mark.parametrize(
    ("form", "kernel_size", "rate"),
    [
        *((form, 3, rate) for form in (WINOGRAD, BY_TAPS) for rate in (1, 2, 5, 24)),
        *((BY_TAPS, *sizes) for sizes in [(7, 1), (7, 4), (4, 4), (4, 30)]),
    ],
)
def test_forms_for_many_channels_equal_the_definition(form, kernel_size, rate):
    for shape, channels in (((9, 12), (4, 5)), ((8, 1), (5, 4))):
        with jax.enable_x64(True):
            pair = ours_and_plain(shape, kernel_size, channels, rate=rate, stride=1, ours=by(form))
        assert_same(pair)


def test_winograd_rounds_no_worse_than_twice_the_definition():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 41, 41, 256)), rng.normal(size=(3, 3, 256, 256))
    with jax.enable_x64(True):
        exact = np.asarray(plain.atrous_conv(jnp.asarray(x), jnp.asarray(kernel), rate=2))
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    ours, defined = (
        np.square(np.asarray(y) - exact).mean() ** 0.5
        for y in (WINOGRAD.value(x, kernel, 2, 1), plain.atrous_conv(x, kernel, rate=2))
    )
    assert ours < 2 * defined < 1e-5 * np.std(exact)


CHOICES = """
 81   64   64  1 BY_ROWS
 81  128  256  1 WINOGRAD
321   64   64  1 BY_ROWS
 41  256  256  2 WINOGRAD
 65  256  256  2 WINOGRAD
 41  512  512  4 WINOGRAD
 41  512 1024  6 WINOGRAD
 41  512 1024 12 BY_TAPS
 41  512 1024 18 BY_TAPS
 41  512 1024 24 BY_TAPS
 41 2048   21 24 NARROW
"""


def zeros(side, channels, features, size=3, dtype="float32"):
    shapes = (1, side, side, channels), (size, size, channels, features)
    return [jnp.zeros(shape, dtype) for shape in shapes]


def test_the_layers_of_the_paper_take_the_fastest_form():
    for line in CHOICES.split("\n")[1:-1]:
        *numbers, expected = line.split()
        *sizes, rate = map(int, numbers)
        found = convolution_cpu.choose(*zeros(*sizes), rate, 1, trained=False)
        assert found is getattr(convolution_cpu, expected), line


def test_a_1x1_convolution_is_a_product_and_half_precision_is_kept_from_winograd():
    pointwise = convolution_cpu.choose(*zeros(65, 256, 256, 1), 1, 2, trained=True)
    assert pointwise is POINTWISE
    half = convolution_cpu.choose(*zeros(65, 256, 256, dtype="bfloat16"), 2, 1, trained=False)
    assert half is BY_ROWS


def products(function, *arrays, platform="cpu"):
    with xla.forms_of(platform):
        text = jax.jit(lambda *arrays: function(*arrays)).lower(*arrays).as_text()
    return text.count("stablehlo.dot_general")


def test_a_short_convolution_is_not_winograds_where_gradients_are_taken():
    """Nor where another platform is forced while a program is traced."""
    x, kernel = zeros(41, 256, 256)
    convolve = partial(atrous_conv, rate=2)
    update = jax.grad(lambda x, k: convolve(x, k).sum(), argnums=(0, 1))
    assert products(convolve, x, kernel) == 16
    assert products(convolve, x, kernel, platform="plain") == 0
    assert products(convolve, x, kernel, platform="tpu") == 0
    assert products(update, x, kernel) == 1


def test_the_weight_gradient_of_half_precision_is_summed_in_float32():
    """Rounded once, to 8 bits; sums of 8 bits over the 80 steps would be 8 times as far off."""
    rng = np.random.default_rng(0)
    shapes = ((2, 81, 81, 64), (3, 3, 64, 64), (2, 81, 81, 64))
    arrays = [jnp.asarray(rng.normal(size=shape) + 0.4, jnp.bfloat16) for shape in shapes]
    x, kernel, gradient = (array.astype(jnp.float32) for array in arrays)
    found = jax.jit(lambda: BY_ROWS.gradients(*arrays, 1, 1)[1])()
    expected = jax.vjp(lambda k: plain.atrous_conv(x, k), kernel)[1](gradient)[0]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, expected, rtol=0, atol=2**-8 * np.abs(expected).max())


def test_a_program_holds_the_form_of_its_platform_and_no_conditional():
    x, kernel = zeros(41, 256, 256)
    update = jax.jit(jax.grad(lambda x, k: atrous_conv(x, k, rate=2).sum(), argnums=(0, 1)))
    compiled = update.lower(x, kernel).compile().as_text()
    assert " conditional(" not in compiled
    text = update.trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("stablehlo.convolution") == 2  # input gradient and weight gradient


def test_equal_convolutions_of_a_network_are_lowered_once():
    x, kernel = zeros(16, 4, 4)

    def blocks(x):
        for _ in range(8):
            x = jax.nn.relu(WINOGRAD.value(x, kernel, 2, 1))
        return x

    assert products(blocks, x) == 16


@pytest.mark.parametrize(("shape", "channels"), [((9, 12), (5, 2)), ((8, 13), (4, 5))])
@pytest.mark.parametrize(
    ("kernel_size", "rate", "stride"),
    [
        *((3, rate, 1) for rate in (1, 2, 4, 6, 12, 18, 24)),
        *((*sizes, 2) for sizes in [(1, 1), (1, 4), (3, 1), (3, 3), (7, 1)]),
    ],
)
def test_the_weight_gradient_is_that_of_the_convolution(shape, channels, kernel_size, rate, stride):
    def ours(x, kernel, gradient, **sizes):
        return (convolution_gpu.weight_gradient(x, gradient, kernel_size=kernel_size, **sizes),)

    with jax.enable_x64(True):
        sizes = {"rate": rate, "stride": stride}
        assert_same(ours_and_plain(shape, kernel_size, channels, **sizes, ours=ours))


@pytest.mark.parametrize(("kernel_size", "rate"), [(1, 2), (3, 2), (4, 2), (4, 8), (7, 2), (7, 4)])
@pytest.mark.parametrize("form", ["by_taps", "by_space_to_batch", "by_shifted_gradient"])
def test_every_form_computes_it_for_every_kernel(form, kernel_size, rate):
    def ours(x, kernel, gradient, *, rate, stride):
        form_of_gradient = getattr(convolution_gpu, form)
        return (form_of_gradient(x, gradient, kernel_size=kernel_size, rate=rate),)

    with jax.enable_x64(True):
        assert_same(ours_and_plain((11, 8), kernel_size, (3, 4), rate=rate, stride=1, ours=ours))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_result_has_the_dtype_of_the_input(dtype):
    x, gradient = (jax.ShapeDtypeStruct((2, 9, 12, channels), dtype) for channels in (4, 5))
    for rate in (1, 2, 12):
        ours = partial(convolution_gpu.weight_gradient, kernel_size=3, rate=rate)
        assert jax.eval_shape(ours, x, gradient).dtype == dtype
