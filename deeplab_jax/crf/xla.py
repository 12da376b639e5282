"""Operations that XLA must compile in one particular way, for the same bits or for speed."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

from deeplab_jax import types

BLOCK = 512
"""Length of the blocks of `cumulative`."""

_cpus_only = ContextVar("cpus_only", default=False)

ROWS = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))


def for_cpus(function: Callable) -> Callable:
    """`function`, traced for CPUs alone, in half the time; other devices must not run it."""

    @wraps(function)
    def traced(*args, **kwargs):
        token = _cpus_only.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _cpus_only.reset(token)

    return traced


def stage(proceed: Bool[Array, ""], function: Callable, *args):
    """function(*args) if `proceed`, else NaN (0 for integers).

    XLA would fuse `function` into the gathers that read its results, and compute each result once
    per gather. A conditional keeps it from that on CPUs, where a barrier does not. GPUs have the
    barrier: their host waits at a conditional.
    """

    def blank(x):
        value = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
        return jnp.full(x.shape, value, x.dtype)

    def refuse(*args):
        return jax.tree.map(blank, jax.eval_shape(function, *args))

    def conditional(proceed, *args):
        return lax.cond(proceed, function, refuse, *args)

    def barrier(proceed, *args):
        result = function(*args)
        chosen = jax.tree.map(lambda x: jnp.where(proceed, x, blank(x)), result)
        return lax.optimization_barrier(chosen)

    if _cpus_only.get():
        return conditional(proceed, *args)
    return lax.platform_dependent(proceed, *args, cpu=conditional, default=barrier)


def rounded_product(a: Float[Array, "*a"], b: np.float32) -> Float[Array, "*a"]:
    """a * b, rounded before it is added to anything (no fused multiply-add)."""
    product = a * b
    return jnp.where(jnp.isnan(product), 0, product)


def quotient(values: types.Array, divisor: Any) -> Float[types.Array, "..."]:
    """values / divisor with the correctly rounded float32 result, on every platform.

    Pixels on the border of two simplices change their vertices with the last bit of a feature,
    so the bits must be those of the host. NumPy arrays are divided by NumPy. Float64 values stay
    float64.
    """
    if isinstance(values, np.ndarray) and not isinstance(divisor, jax.Array):
        dtype = np.float64 if values.dtype == np.float64 else np.float32
        return values.astype(dtype) / np.asarray(divisor, dtype)
    if values.dtype == jnp.float64:
        return values / divisor
    return rounded_quotient(values.astype(jnp.float32), jnp.asarray(divisor, jnp.float32))


@jax.custom_jvp
def rounded_quotient(
    values: Float32[Array, "*a"], divisor: Float32[Array, "*b"]
) -> Float32[Array, "..."]:
    """Float32 division by way of float64, which rounds correctly.

    GPUs divide float32 with an error of 2 units in the last place, and XLA multiplies by
    1 / divisor where the divisor is a scalar. The float64 quotient of two float32 numbers, rounded
    to float32, is their correctly rounded float32 quotient (53 >= 2 * 24 + 2 bits).
    """
    with jax.enable_x64(True):
        wide = values.astype(jnp.float64)
        by = jnp.where(jnp.isnan(values), 1, divisor.astype(jnp.float64))
        return (wide / by).astype(jnp.float32)


@rounded_quotient.defjvp
def rounded_quotient_jvp(primals, tangents):
    """The derivative of a division, in float32: it needs no exact bits."""
    (values, divisor), (change, divisor_change) = primals, tangents
    result = rounded_quotient(values, divisor)
    return result, change / divisor - result / divisor * divisor_change


def gather(table: Shaped[Array, " m"], index: Int32[Array, "*i"]) -> Shaped[Array, "*i"]:
    """table[index]; every index must be inside."""
    return table.at[index].get(mode="promise_in_bounds")


def cumulative(
    combine: Callable[[Array, Array], Array], values: Int32[Array, " n"]
) -> Int32[Array, " n"]:
    """Cumulative sum or maximum (by `combine`) of numbers that are not negative.

    Each step doubles the length that is combined, first inside blocks and then over the blocks:
    jnp.cumsum takes longer to run and to compile.
    """

    def along_last(x):
        padded_shape = [(0, 0)] * (x.ndim - 1) + [(x.shape[-1], 0)]

        def double(i, x):
            start = [jnp.int32(0)] * (x.ndim - 1) + [x.shape[-1] - jnp.left_shift(1, i)]
            return combine(x, lax.dynamic_slice(jnp.pad(x, padded_shape), start, x.shape))

        return lax.fori_loop(jnp.int32(0), (x.shape[-1] - 1).bit_length(), double, x)

    n = len(values)
    blocks = along_last(jnp.pad(values, (0, -n % BLOCK)).reshape(-1, BLOCK))
    before = along_last(jnp.pad(blocks[:-1, -1], (1, 0)))
    return combine(blocks, before[:, None]).reshape(-1)[:n]


def take_rows(values: Float[Array, "m c"], index: Int32[Array, " n"]) -> Float[Array, "n c"]:
    """values[index]; every index must be inside."""
    inside = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(values, index[:, None], ROWS, (1, values.shape[1]), mode=inside)
