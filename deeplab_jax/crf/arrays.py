"""Arrays of any framework: whatever has `__dlpack__` goes in, and the same framework comes out.

Tensors of torch, CuPy and others share their memory with NumPy on CPUs and with JAX on GPUs; what
lies on another device than JAX has is refused. Results lie where the arguments did.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from deeplab_jax.crf.forked import is_forked
from deeplab_jax.crf.xla import module_of
from deeplab_jax.types import Array, UserError

CPU = 1  # DLPack's number for it


def is_foreign(value: Any) -> bool:
    """Whether this is an array of another framework than NumPy and JAX."""
    return hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray | jax.Array)


def require_array(name: str, value: Any) -> Array:
    """`value` as a NumPy or JAX array, NumPy's in a process without XLA, or a UserError."""
    if isinstance(value, np.ndarray | jax.Array):
        return np.asarray(value) if is_forked() else value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if not is_foreign(value):
        raise UserError(f"{name} is a {kind}; expected an array: pass np.asarray({name})")
    try:
        if value.__dlpack_device__()[0] == CPU and "bfloat16" not in str(value.dtype):
            return np.from_dlpack(value)
        return jax.dlpack.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{name} is a {kind} that JAX cannot share ({str(error).splitlines()[0]}): pass it "
            "detached, on a CPU or on a device that JAX has; crf.torch.DenseCRF has gradients"
        ) from None


def as_given(result: Array, given: Any) -> Any:
    """The result as an array of the framework of `given`, on its device."""
    kind = type(given).__module__.split(".")[0]
    if kind == "tensorflow":
        return sys.modules[kind].experimental.dlpack.from_dlpack(result.__dlpack__())
    on_host = given.__dlpack_device__()[0] == CPU
    return sys.modules[kind].from_dlpack(np.array(result) if on_host else jax.numpy.asarray(result))


def any_framework(function: Callable) -> Callable:
    """`function`, whose result is of the framework of its first foreign array, if it has one."""

    @functools.wraps(function)
    def call(*args, **options):
        foreign = next((x for x in (*args, *options.values()) if is_foreign(x)), None)
        result = function(*args, **options)
        return result if foreign is None else as_given(result, foreign)

    return call


def channels_last(layout: str, **arrays: Any) -> list[Array]:
    """The arrays with their channels or classes last, where `layout` has them."""
    if layout not in ("hwc", "chw"):
        raise UserError(f"layout is 'hwc' or 'chw', got {layout!r}")
    found = [require_array(name, value) for name, value in arrays.items()]
    if layout == "hwc":
        return found
    return [module_of(x).moveaxis(x, -3, -1) if x.ndim > 2 else x for x in found]


def in_layout(result: Array, layout: str) -> Array:
    """The result, whose channels or classes are last, in `layout`."""
    return module_of(result).moveaxis(result, -1, -3) if layout == "chw" else result
