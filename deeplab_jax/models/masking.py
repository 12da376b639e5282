"""Photographs of several sizes in one array: each has the values of its own size.

Each photograph lies at the top left of its part of the array, and `sizes` says which rows and
columns are its own. A network does not know of this. `masked` calls it with an interceptor that,
before each operation that mixes pixels, sets what lies beyond a photograph to the zeros that
padding would have at its own size, or to its last row and column before a resizing.

Operations that mix pixels must be modules for this: those of `layers`, or flax's `nn.Conv`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from deeplab_jax.models.layers import (
    AveragePool,
    Conv,
    Enlarge,
    GlobalAveragePool,
    MaxPool,
    Rescale,
    Resize,
)
from deeplab_jax.ops.plain import pooled_size, strided_size
from deeplab_jax.ops.resize import (
    AREAS,
    Alignment,
    enlarge,
    rescale,
    resize_bilinear,
    scale_and_translate,
    scaled_size,
)
from deeplab_jax.types import UserError

Sizes = Int[jax.Array, "b 2"]
"""Rows and columns of each photograph."""


def masked(
    function: Callable, *arguments: Any, sizes: Sizes, full_sizes: Sizes | None = None
) -> Any:
    """`function(*arguments)`, where a DeepLabV2 within gets inputs of `sizes`.

    `full_sizes` are those that DeepLabV2.full_size enlarges to. Beyond the sizes the result holds
    anything.
    """
    with nn.intercept_methods(_Masks(sizes, full_sizes)):
        return function(*arguments)


class _Masks:
    """The interceptor. Within one scale it knows the sizes by the shape of an array."""

    def __init__(self, sizes: Sizes, full_sizes: Sizes | None):
        self.input_sizes, self.full_sizes = sizes, full_sizes
        self.sizes: dict[tuple[int, ...], Sizes] = {}
        self.map_sizes: dict[tuple[int, ...], Sizes] = {}

    def __call__(self, method, arguments, options, context):
        module = context.module
        if context.method_name != "__call__" or not arguments:
            return method(*arguments, **options)
        x, *rest = arguments
        if isinstance(module, Rescale):
            return self._rescale(module, x, *rest)
        if isinstance(module, Resize | Enlarge):
            return self._resize(module, x, *rest)
        if isinstance(module, GlobalAveragePool):
            return self._mean(x)
        if isinstance(module, Conv | MaxPool | AveragePool | nn.Conv):
            sizes = self._of(x)
            y = method(_prepared(module, x, sizes), *rest, **options)
            if y.shape[1:3] != x.shape[1:3]:
                self.sizes[y.shape[1:3]] = _sizes_after(module, sizes)
            return y
        y = method(*arguments, **options)
        if module.name == "head":
            self._end_of_scale(y)
        return y

    def _of(self, x) -> Sizes:
        if x.shape[1:3] not in self.sizes:
            raise UserError(
                f"the network makes a map of {x.shape[1:3]} by an operation that is no module of "
                "deeplab_jax.models.layers; use one, so that photographs of several sizes can be "
                "evaluated together"
            )
        return self.sizes[x.shape[1:3]]

    def _rescale(self, module, x, factor):
        y = rescale_each(x, factor, self.input_sizes, alignment=module.alignment)
        sizes = scaled_size(self.input_sizes, factor, alignment=module.alignment)
        self.sizes = {y.shape[1:3]: sizes}
        return y

    def _end_of_scale(self, scores):
        shape = scores.shape[1:3]
        if shape in self.map_sizes:
            raise UserError(
                f"two of the network's scales give score maps of {shape}; choose scales that "
                "differ more"
            )
        self.map_sizes[shape] = self._of(scores)

    def _resize(self, module, x, size, factor=1.0):
        sizes, alignment = self.map_sizes[x.shape[1:3]], module.alignment
        if alignment in (*AREAS, "corners"):
            new = self.full_sizes if isinstance(module, Enlarge) else self.map_sizes[size]
            assert new is not None  # full_size is called with full_sizes
            return resize_each(x, size, sizes, new, alignment=alignment)
        x = extend(x, sizes)  # steps between samples depend on no size
        if isinstance(module, Enlarge):
            return enlarge(x, size, alignment=alignment, scale=factor)
        return resize_bilinear(x, size, alignment=alignment, factor=factor)

    def _mean(self, x):
        sizes = self._of(x)
        self.sizes[1, 1] = jnp.ones_like(sizes)
        total = erase(x, sizes).sum((1, 2), keepdims=True)
        return total / sizes.prod(1)[:, None, None, None].astype(x.dtype)


def _prepared(module, x, sizes):
    """The input of an operation, with what its padding would hold beyond the sizes."""
    if isinstance(module, MaxPool):
        return erase(x, sizes, value=-jnp.inf)
    if isinstance(module, Conv):
        return erase(x, sizes) if module.kernel_size > 1 else x
    return erase(x, sizes)


def _sizes_after(module, sizes):
    if isinstance(module, Conv):
        return strided_size(sizes, module.stride)
    if isinstance(module, MaxPool):
        return pooled_size(
            sizes, kernel=module.kernel_size, stride=module.stride, padding=module.padding
        )
    raise UserError(
        f"{module.name} changes the size of a map; give flax's nn.Conv stride 1 and padding SAME, "
        "or use deeplab_jax.models.layers.Conv"
    )


def erase(
    x: Float[jax.Array, "b h w c"], sizes: Sizes | None, *, value: float = 0.0
) -> Float[jax.Array, "b h w c"]:
    """Sets positions outside each photograph's sizes to `value`."""
    if sizes is None:
        return x
    rows = jnp.arange(x.shape[1]) < sizes[:, :1]
    columns = jnp.arange(x.shape[2]) < sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, value)


def extend(x: Float[jax.Array, "b h w c"], sizes: Sizes) -> Float[jax.Array, "b h w c"]:
    """Repeats the last row and column of each photograph into what lies beyond (edge padding)."""

    def repeat_last(x, size):
        rows, columns = (jnp.minimum(jnp.arange(n), size[i] - 1) for i, n in enumerate(x.shape[:2]))
        return x[rows][:, columns]

    return jax.vmap(repeat_last)(x, sizes)


def flip(x: Float[jax.Array, "b h w c"], sizes: Sizes | None) -> Float[jax.Array, "b h w c"]:
    """Flips each photograph left to right within its sizes; positions beyond them are undefined."""
    if sizes is None:
        return x[:, :, ::-1]
    columns = jnp.maximum(sizes[:, 1:] - 1 - jnp.arange(x.shape[2]), 0)
    return jnp.take_along_axis(x, columns[:, None, :, None], axis=2)


def rescale_each(
    x: Float[jax.Array, "b h w c"], factor: float, sizes: Sizes, *, alignment: Alignment
) -> Float[jax.Array, "b h2 w2 c"]:
    """`ops.resize.rescale` of each photograph by itself; `scaled_size` of the sizes are those
    after it."""
    if factor == 1:
        return x
    if alignment == "corners":
        scaled = partial(scaled_size, factor=factor, alignment=alignment)
        size = tuple(map(scaled, x.shape[1:3]))
        return resize_each(x, size, sizes, scaled(sizes), alignment=alignment)
    return rescale(extend(x, sizes), factor, alignment=alignment)


def resize_each(
    x: Float[jax.Array, "b h w c"],
    size: tuple[int, int],
    sizes: Sizes,
    new_sizes: Sizes,
    *,
    alignment: Alignment,
) -> Float[jax.Array, "b h2 w2 c"]:
    """`ops.resize.resize_bilinear` of each photograph by itself, from its `sizes` to `new_sizes`,
    for the alignments half_pixel, ports and corners.

    The result has `size` rows and columns; positions beyond its new sizes are undefined.
    """
    if x.shape[1:3] == size and sizes is new_sizes:
        return x
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    old, new = sizes.astype(dtype), new_sizes.astype(dtype)
    scale, translation = new / old, jnp.zeros_like(old)
    if alignment == "corners":
        # Of a single row or column every sample is nearer to pixel 0 than to the next.
        scale = jnp.maximum(new - 1, 0.25) / jnp.maximum(old - 1, 0.25)
        translation = 0.5 - 0.5 * scale
    resize = jax.vmap(lambda x, s, t: scale_and_translate(x[None], size, s, t)[0])
    return resize(extend(x, sizes), scale, translation)
