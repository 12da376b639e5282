"""Names of version 0.1 that have moved: they answer in this release, and the next drops them."""

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def answering(
    module: str, moved: Mapping[str, str], gone: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """The `__getattr__` of a module that some names have left.

    `moved` gives the new place of each below deeplab_jax, such as "ops.norm.add_relu"; the old name
    is that object, with a DeprecationWarning. `gone` says for each name that has no such successor
    what to use; it raises an ImportError, because `from module import name` replaces the message of
    an AttributeError by its own.
    """
    gone = gone or {}

    def find(name: str) -> Any:
        if name in moved:
            home, _, new = moved[name].rpartition(".")
            warnings.warn(
                f"{module}.{name} is deeplab_jax.{moved[name]} since version 0.2; the next version "
                "drops the old name",
                DeprecationWarning,
                stacklevel=2,
            )
            return getattr(importlib.import_module(f"deeplab_jax.{home}"), new)
        if name in gone:
            raise ImportError(f"{module}.{name} is gone since version 0.2; use {gone[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def advising(function: Callable, advice: str) -> Callable:
    """`function`, with `advice` in the TypeError for arguments that it does not take."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        try:
            signature.bind(*args, **options)
        except TypeError as fault:
            raise TypeError(f"{advice} ({fault})") from None
        return function(*args, **options)

    return call
