from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from deeplab_jax.ops import norm, plain, pooling, resize
from deeplab_jax.ops.convolution import atrous_conv

SIZES = [((1, 1), (3, 4)), ((5, 6), (9, 4)), ((31, 21), (41, 41)), ((3, 3), (1, 8))]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def on_device(function, *arrays, **options):
    """`function`, compiled, of arrays as they are; of one photograph where the first is one."""
    batched = arrays[0].ndim == 4
    first = arrays[0] if batched else arrays[0][None]
    y = jax.jit(partial(function, **options))(*map(jnp.asarray, (first, *arrays[1:])))
    return np.asarray(y if batched else y[0])


@pytest.mark.parametrize("rate", (1, 2, 3, 4, 6, 12, 18, 24))
def test_atrous_convolution_is_the_sum_over_its_taps_at_every_rate(rate):
    x, kernel = draw(13, 10, 2), draw(3, 3, 2, 3)
    y = on_device(atrous_conv, x, kernel, rate=rate)
    # float32 against float64, 18 products
    np.testing.assert_allclose(y, reference.atrous_conv(x, kernel, rate=rate), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 9), (9, 12)])
@pytest.mark.parametrize(
    ("kernel_size", "rate", "stride"), [(1, 1, 2), (7, 1, 2), (3, 2, 2), (4, 4, 1)]
)
def test_atrous_convolution_is_the_sum_over_its_taps_with_strides(size, kernel_size, rate, stride):
    x, kernel = draw(*size, 2), draw(kernel_size, kernel_size, 2, 3)
    y = on_device(atrous_conv, x, kernel, rate=rate, stride=stride)
    expected = reference.atrous_conv(x, kernel, rate=rate, stride=stride)
    np.testing.assert_allclose(y, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("rate", [2, 3, 4])
def test_atrous_convolution_is_an_ordinary_one_on_interleaved_phases(rate):
    """The paper's other implementation (Section 3.1): r * r subsampled maps, convolved densely."""
    x, kernel = draw(1, 5 * rate, 4 * rate, 2), draw(3, 3, 2, 3)
    phases = [x[0, i::rate, j::rate] for i, j in np.ndindex(rate, rate)]
    found = on_device(atrous_conv, np.stack(phases), kernel)
    whole = on_device(atrous_conv, x, kernel, rate=rate)[0]
    for phase, (i, j) in zip(found, np.ndindex(rate, rate), strict=True):
        np.testing.assert_allclose(whole[i::rate, j::rate], phase, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 9), (13, 16), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pooling_rounds_sizes_up_and_ignores_padding(size, stride):
    x = draw(*size, 2) - 10  # all negative: a padding of zeros would win
    y = on_device(pooling.max_pool, x, stride=stride)
    np.testing.assert_array_equal(y, reference.pool(x, stride=stride))


@pytest.mark.parametrize("kernel", [3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pooled_sizes_count_the_windows_of_the_definition(kernel, stride):
    sizes = range(kernel, 40)
    expected = [len(reference.pool(draw(n, 1, 1), kernel=kernel, stride=stride)) for n in sizes]
    padding = (kernel - 1) // 2
    found = [plain.pooled_size(n, kernel=kernel, stride=stride, padding=padding) for n in sizes]
    assert found == expected


def test_average_pooling_divides_by_nine_at_the_border_too():
    x = draw(6, 7, 2)
    y = on_device(plain.average_pool, x)
    np.testing.assert_allclose(y, reference.pool(x, how="average"), rtol=0, atol=1e-6)
    assert on_device(plain.average_pool, np.ones((4, 4, 1)))[0, 0, 0] == pytest.approx(4 / 9)


@pytest.mark.parametrize(("size", "out"), SIZES)
@pytest.mark.parametrize("alignment", ["corners", "half_pixel"])
def test_resizing_is_two_tap_interpolation(size, out, alignment):
    x = draw(*size, 2)
    y = on_device(resize.resize_bilinear, x, size=out, alignment=alignment)
    expected = reference.resize(x, out, alignment=alignment)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-5)  # places are float32


def test_half_pixel_resizing_is_jax_image_resize():
    x = draw(1, 5, 5, 2)
    y = on_device(resize.resize_bilinear, x, size=(33, 40), alignment="half_pixel")
    np.testing.assert_array_equal(y, jax.image.resize(x, (1, 33, 40, 2), "bilinear"))


@pytest.mark.parametrize(("size", "out"), [(321, 161), (513, 257)])
def test_halving_at_the_corners_takes_every_second_pixel(size, out):
    x = draw(1, size, 5, 1)
    y = on_device(resize.rescale, x, factor=0.5, alignment="corners")
    assert y.shape == (1, out, 3, 1)
    np.testing.assert_allclose(y, x[:, ::2, ::2], rtol=0, atol=2e-4)  # places are float32


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25])
def test_half_pixel_rescaling_steps_by_exactly_one_over_the_factor(factor):
    x = draw(13, 10, 1)
    y = on_device(resize.rescale, x, factor=factor, alignment="half_pixel")
    sides = [[(i + 0.5) / factor - 0.5 for i in range(int(n * factor))] for n in (13, 10)]
    np.testing.assert_allclose(y, reference.bilinear(x, *sides), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "out", "stride"), [(321, 41, 8), (513, 65, 8), (321, 21, 16), (513, 33, 16)]
)
def test_labels_under_a_corner_aligned_map_are_a_strided_slice(size, out, stride):
    labels = np.random.default_rng(0).integers(0, 21, (1, size, size), np.uint8)
    found = resize.subsample_labels(jnp.asarray(labels), size=(out, out), alignment="corners")
    np.testing.assert_array_equal(found, labels[:, ::stride, ::stride])


@pytest.mark.parametrize("size", [32, 33, 65])
def test_half_pixel_labels_are_those_of_the_pixel_below_the_centre(size):
    out = -(-size // 8)
    labels = np.arange(size * size).reshape(1, size, size)
    found = resize.subsample_labels(jnp.asarray(labels), size=(out, out), alignment="half_pixel")
    nearest = [int((i + 0.5) * size / out) for i in range(out)]
    np.testing.assert_array_equal(found[0], labels[0][np.ix_(nearest, nearest)])


def test_resizing_backward_is_the_adjoint():
    x, y = jnp.asarray(draw(1, 31, 5, 1)), jnp.asarray(draw(1, 41, 9, 1, seed=1))
    enlarge = partial(resize.resize_bilinear, size=(41, 9), alignment="corners")
    large, transpose = jax.vjp(enlarge, x)
    (small,) = transpose(y)
    np.testing.assert_allclose((large * y).sum(), (x * small).sum(), rtol=1e-4)


def test_normalising_is_caffes_batch_norm_and_scale():
    x, mean, scale, bias = draw(2, 3, 3, 4), draw(4), draw(4, seed=1), draw(4, seed=2)
    variance = np.square(draw(4, seed=3))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    factor, offset = norm.norm_factors(*map(jnp.asarray, (mean, variance, scale, bias)))
    y = on_device(norm.affine, x, factor, offset)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_those_of_the_real_photographs():
    x = draw(4, 3, 5, 2)
    real = np.array([True, False, True, True])
    mean, variance = norm.batch_statistics(jnp.asarray(x), jnp.asarray(real), None)
    np.testing.assert_allclose(mean, x[real].mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(variance, x[real].var((0, 1, 2)), rtol=1e-5)


def test_dropout_keeps_the_mean_and_gives_each_photograph_its_own_mask():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jnp.ones((3, 20, 20, 5))
    y = norm.dropout(x, keys, rate=0.25)
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.03)  # 6000 draws: 5 standard deviations
    np.testing.assert_array_equal(y[1:2], norm.dropout(x[1:2], keys[1:2], rate=0.25))
    assert (y[0] != y[1]).any()
