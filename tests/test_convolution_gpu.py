"""The forms for GPUs compute the weight gradient of the definition; they run on CPUs too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax.ops import convolution_gpu


def drawn(shape, channels, *, stride=1):
    rng = np.random.default_rng(0)
    rows, columns = (-(-n // stride) for n in shape)
    x = rng.normal(size=(2, *shape, channels[0]))
    return x, rng.normal(size=(2, rows, columns, channels[1]))


def definition(x, gradient, *, kernel_size, rate=1, stride=1):
    """dw[i, j] = sum over positions p of padded x[stride * p + rate * (i, j)]^T gradient[p]."""
    padding = rate * (kernel_size - 1) // 2
    span = rate * (kernel_size - 1)
    x = np.pad(x, ((0, 0), (padding, span), (padding, span), (0, 0)))
    result = np.zeros((kernel_size, kernel_size, x.shape[-1], gradient.shape[-1]))
    for p, q in np.ndindex(gradient.shape[1:3]):
        window = x[:, stride * p :, stride * q :][:, : span + 1 : rate, : span + 1 : rate]
        result += np.einsum("bijc,bo->ijco", window, gradient[:, p, q])
    return result


def assert_equals_definition(function, x, gradient, **options):
    with jax.enable_x64(True):
        ours = jax.jit(lambda *a: function(*a, **options))(jnp.asarray(x), jnp.asarray(gradient))
    expected = definition(x, gradient, **options)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize(("shape", "channels"), [((9, 12), (5, 2)), ((8, 13), (4, 5))])
@pytest.mark.parametrize(
    ("kernel_size", "rate", "stride"),
    [
        *((3, rate, 1) for rate in (1, 2, 4, 6, 12, 18, 24)),
        *((*sizes, 2) for sizes in [(1, 1), (1, 4), (3, 1), (3, 3), (7, 1)]),
    ],
)
def test_the_weight_gradient_is_that_of_the_convolution(shape, channels, kernel_size, rate, stride):
    x, gradient = drawn(shape, channels, stride=stride)
    options = {"kernel_size": kernel_size, "rate": rate, "stride": stride}
    assert_equals_definition(convolution_gpu.weight_gradient, x, gradient, **options)


@pytest.mark.parametrize(("kernel_size", "rate"), [(1, 2), (3, 2), (4, 2), (4, 8), (7, 2), (7, 4)])
@pytest.mark.parametrize("form", ["by_taps", "by_space_to_batch", "by_shifted_gradient"])
def test_every_form_computes_it_for_every_kernel(form, kernel_size, rate):
    x, gradient = drawn((11, 8), (3, 4))
    options = {"kernel_size": kernel_size, "rate": rate}
    assert_equals_definition(getattr(convolution_gpu, form), x, gradient, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_result_has_the_dtype_of_the_input(dtype):
    x, gradient = (jnp.asarray(a, dtype) for a in drawn((9, 12), (4, 5)))
    for rate in (1, 2, 12):
        ours = partial(convolution_gpu.weight_gradient, kernel_size=3, rate=rate)
        assert jax.eval_shape(ours, x, gradient).dtype == dtype
