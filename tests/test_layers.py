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


STRIDED = [(1, 1, 2), (7, 1, 2), (3, 2, 2), (4, 4, 1)]


@pytest.mark.parametrize("size", [(13, 10), (9, 12)])
@pytest.mark.parametrize(
    ("kernel_size", "rate", "stride"),
    [*((3, rate, 1) for rate in (1, 2, 3, 4, 6, 12, 18, 24)), *STRIDED],
)
def test_atrous_convolution_is_the_sum_over_its_taps(size, kernel_size, rate, stride):
    x, kernel = draw(*size, 2), draw(kernel_size, kernel_size, 2, 3)
    y = on_device(atrous_conv, x, kernel, rate=rate, stride=stride)
    expected = reference.atrous_conv(x, kernel, rate=rate, stride=stride)
    # float32 against float64, 2 products a tap
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 if kernel_size == 3 else 3e-5)


@pytest.mark.parametrize("size", [(8, 9), (13, 16), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_max_pooling_rounds_sizes_up_and_ignores_padding(size, stride):
    x = draw(*size, 2) - 10  # all negative: a padding of zeros would win
    y = on_device(pooling.max_pool, x, stride=stride)
    np.testing.assert_array_equal(y, reference.pool(x, stride=stride))


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


def test_average_pooling_divides_by_nine_at_the_border_too():
    x = draw(6, 7, 2)
    y = on_device(plain.average_pool, x)
    np.testing.assert_allclose(y, reference.pool(x, how="average"), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "out"), SIZES)
@pytest.mark.parametrize("alignment", ["corners", "half_pixel"])
def test_resizing_is_two_tap_interpolation(size, out, alignment):
    x = draw(*size, 2)
    y = on_device(resize.resize_bilinear, x, size=out, alignment=alignment)
    expected = reference.resize(x, out, alignment=alignment)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize(
    ("alignment", "size"),
    [*(("corners", n) for n in (33, 321, 513)), *(("half_pixel", n) for n in (32, 33, 65))],
)
def test_labels_lie_under_the_cells_of_a_map(alignment, size, stride):
    """A strided slice where corners are aligned, else the pixel below the centre."""
    out = -(-size // stride)
    labels = np.random.default_rng(0).integers(0, 21, (1, size, size), np.uint8)
    found = resize.subsample_labels(jnp.asarray(labels), size=(out, out), alignment=alignment)
    nearest = [int((i + 0.5) * size / out) for i in range(out)]
    places = nearest if alignment == "half_pixel" else range(0, size, stride)
    np.testing.assert_array_equal(found[0], labels[0][np.ix_(places, places)])


def test_resizing_backward_is_the_adjoint():
    x, y = jnp.asarray(draw(1, 31, 5, 1)), jnp.asarray(draw(1, 41, 9, 1, seed=1))
    enlarge = partial(resize.resize_bilinear, size=(41, 9), alignment="corners")
    large, transpose = jax.vjp(enlarge, x)
    (small,) = transpose(y)
    np.testing.assert_allclose((large * y).sum(), (x * small).sum(), rtol=1e-4)


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
