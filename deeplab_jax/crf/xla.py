"""Operations that XLA must compile in one particular way, for the same bits or for speed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Float32, Int32, Shaped

from deeplab_jax.ops.xla import by_platform
from deeplab_jax.types import Array

BLOCK = 512  # length of the blocks of `cumulative`
ROWS = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))


def module_of(array: Any) -> Any:
    """NumPy for its arrays, jax.numpy for all others."""
    return np if isinstance(array, np.ndarray) else jnp


def stage(proceed: Bool[jax.Array, ""], function: Callable, *args):
    """function(*args) if `proceed`, else NaN (0 for integers).

    XLA would fuse `function` into the gathers that read its results and compute each result anew
    for each. On CPUs only a conditional prevents that; GPUs, whose host waits at a conditional,
    have a barrier.
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

    return by_platform(proceed, *args, cpu=conditional, default=barrier)


def rounded_product(a: Float[Array, "*a"], b: np.float32) -> Float[Array, "*a"]:
    """a * b, rounded before it is added to anything (no fused multiply-add)."""
    product = a * b
    return product if isinstance(a, np.ndarray) else jnp.where(jnp.isnan(product), 0, product)


def quotient(values: Array, divisor: Any) -> Float[Array, "..."]:
    """values / divisor with the correctly rounded float32 result, on every platform.

    The last bit of a feature decides on which side of a simplex's border a pixel lies, so the bits
    must be those of the host. NumPy divides its own arrays. Float64 values stay float64.
    """
    if isinstance(values, np.ndarray) and not isinstance(divisor, jax.Array):
        dtype = np.float64 if values.dtype == np.float64 else np.float32
        return values.astype(dtype) / np.asarray(divisor, dtype)
    values = jnp.asarray(values)
    if values.dtype == jnp.float64:
        return values / divisor
    return rounded_quotient(values.astype(jnp.float32), jnp.asarray(divisor, jnp.float32))


@jax.custom_jvp
def rounded_quotient(
    values: Float32[Array, "*a"], divisor: Float32[Array, "*b"]
) -> Float32[Array, "..."]:
    """Float32 division by way of float64, which rounds correctly.

    GPUs err by 2 units in the last place, and XLA multiplies by 1 / divisor where that is a
    scalar. The float64 quotient, rounded to float32, is correctly rounded (53 >= 2 * 24 + 2 bits).
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
    if isinstance(table, np.ndarray):
        return table[index]
    return table.at[index].get(mode="promise_in_bounds")


def cumulative(combine: Any, values: Int32[Array, " n"]) -> Int32[Array, " n"]:
    """Cumulative sum or maximum (by jnp.add or jnp.maximum) of numbers that are not negative.

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


def marked(marks: Bool[Array, " m"], size: int) -> tuple[Int32[Array, " m"], Int32[Array, " _"]]:
    """How many marks there are up to each position, and positions of the marks by their number.

    The latter are from number 1 on, `[size + 1]`, and 0 where there are fewer; more are left out.
    """
    if isinstance(marks, np.ndarray):
        number = np.cumsum(marks, dtype=np.int32)
        where = np.zeros(size + 1, np.int32)
        where[1 : number[-1] + 1] = np.flatnonzero(marks)
        return number, where
    number = cumulative(jnp.add, marks.astype(jnp.int32))
    where = jnp.zeros(size + 1, jnp.int32)
    position = jnp.arange(len(marks), dtype=jnp.int32)
    return number, where.at[jnp.where(marks, number, size + 1)].set(position, mode="drop")


def take_rows(values: Float[Array, "m c"], index: Int32[Array, " n"]) -> Float[Array, "n c"]:
    """values[index]; every index must be inside."""
    inside = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(values, index[:, None], ROWS, (1, values.shape[1]), mode=inside)
