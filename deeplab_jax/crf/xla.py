"""Operations that XLA must compile in one particular way, for the same bits or for speed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped

BLOCK = 512
"""Numbers that `running` takes together."""

ROWS = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))


def stage(proceed: Bool[Array, ""], function: Callable, *args):
    """function(*args), NaN or 0 unless `proceed`.

    XLA cannot merge it into what reads its results, which would compute them once per gather.
    """

    def refuse(*args):
        def blank(x):
            value = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else 0
            return jnp.full(x.shape, value, x.dtype)

        return jax.tree.map(blank, jax.eval_shape(function, *args))

    return lax.cond(proceed, function, refuse, *args)


def rounded_product(
    a: Float32[Array, "*a"], b: Float32[Array, "*b"] | np.ndarray | np.float32
) -> Float32[Array, "..."]:
    """a * b rounded to float32 before it is added to anything (no fused multiply-add)."""
    product = a * b
    return jnp.where(jnp.isnan(product), 0, product)


def quotient(values: Array | np.ndarray, divisor: Any) -> Float32[Array, "..."]:
    """values / divisor, correctly rounded: XLA multiplies by 1 / divisor where it is a scalar."""
    values = values.astype(jnp.float32)
    return values / jnp.where(jnp.isnan(values), 1, jnp.float32(divisor))


def look_up(table: Shaped[Array, " m"], index: Int32[Array, "*i"]) -> Shaped[Array, "*i"]:
    """table[index]; every index must be inside."""
    return table.at[index].get(mode="promise_in_bounds")


def running(
    combine: Callable[[Array, Array], Array], values: Int32[Array, " n"]
) -> Int32[Array, " n"]:
    """Running sum or maximum of numbers that are not negative.

    By doubling inside blocks and then over them: jnp.cumsum takes longer to run and to compile.
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
