"""Atrous convolution (Section 3.1) by the form that is fast on the platform at hand.

The definition is plain.atrous_conv, one `lax.conv_general_dilated` with `rhs_dilation`. The choice
is made when a program is lowered for a platform; values and gradients are the same.
"""

from functools import partial

import jax
from jaxtyping import Float

from deeplab_jax.ops import convolution_cpu, convolution_gpu, plain
from deeplab_jax.ops.xla import by_platform


def atrous_conv(
    x: Float[jax.Array, "b h w i"],
    kernel: Float[jax.Array, "k k i o"],
    *,
    rate: int = 1,
    stride: int = 1,
) -> Float[jax.Array, "b h2 w2 o"]:
    """y[i] = sum over k of x[i + rate * k] w[k] (Section 3.1), zero padded to keep the size.

    At stride s the output has ceil(h / s) rows. An even kernel needs an even rate, so that the
    padding is the same on both sides. Forward-mode derivatives need plain.atrous_conv.
    """
    return _atrous_conv(x, kernel, rate, stride)


def _traced_once(function):
    """The function, traced once for each shape and then part of the program that calls it."""
    return jax.jit(function, static_argnames=("rate", "stride"), inline=True)


@_traced_once
def _plain_gradients(x, kernel, gradient, *, rate, stride):
    conv = partial(plain.atrous_conv, rate=rate, stride=stride)
    return jax.vjp(conv, x, kernel)[1](gradient)


@_traced_once
def _gpu_gradients(x, kernel, gradient, *, rate, stride):
    conv = partial(plain.atrous_conv, kernel=kernel, rate=rate, stride=stride)
    (x_gradient,) = jax.vjp(conv, x)[1](gradient)
    return x_gradient, convolution_gpu.weight_gradient(
        x, gradient, kernel_size=kernel.shape[0], rate=rate, stride=stride
    )


_plain = _traced_once(plain.atrous_conv)
_cpu_inference = _traced_once(convolution_cpu.inference)
_cpu_training = _traced_once(convolution_cpu.training)
_cpu_gradients = _traced_once(convolution_cpu.gradients)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _atrous_conv(x, kernel, rate, stride):
    default, cpu = _with_sizes((_plain, _cpu_inference), rate, stride)
    return by_platform(x, kernel, default=default, cpu=cpu)


def _forward(x, kernel, rate, stride):
    default, cpu = _with_sizes((_plain, _cpu_training), rate, stride)
    return by_platform(x, kernel, default=default, cpu=cpu), (x, kernel)


def _backward(rate, stride, saved, gradient):
    forms = _plain_gradients, _cpu_gradients, _gpu_gradients
    default, cpu, gpu = _with_sizes(forms, rate, stride)
    return by_platform(*saved, gradient, default=default, cpu=cpu, gpu=gpu)


def _with_sizes(functions, rate, stride):
    return [partial(function, rate=rate, stride=stride) for function in functions]


_atrous_conv.defvjp(_forward, _backward)
