"""Control of XLA: forms of an operation by platform, and values that are computed once only."""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

_forced: ContextVar[str | None] = ContextVar("forms of a platform", default=None)


def by_platform(
    *arguments: Any,
    default: Callable,
    cpu: Callable | None = None,
    gpu: Callable | None = None,
    tpu: Callable | None = None,
) -> Any:
    """`default(*arguments)`, or the form of the platform that the program is lowered for.

    A program for one platform holds only its form, and no conditional. All forms have the same
    values; they differ in speed. `forms_of` overrides the choice.
    """
    forms = {"cpu": cpu, "cuda": gpu, "rocm": gpu, "tpu": tpu}
    forms = {platform: form for platform, form in forms.items() if form is not None}
    forced = _forced.get()
    if forced is not None:
        return forms.get(forced, default)(*arguments)
    return lax.platform_dependent(*arguments, default=default, **forms)


@contextlib.contextmanager
def forms_of(platform: str | None) -> Iterator[None]:
    """Everything traced inside uses the forms of `platform` wherever it runs.

    "cpu", "cuda", "rocm", "tpu", or "plain" for the definitions alone; None for those of the
    platform that a program is lowered for, within another `forms_of`. For tests, benchmarks and
    programs that are exported to several platforms. A function that `jax.jit` has traced before
    keeps the forms it was traced with.
    """
    token = _forced.set(platform)
    try:
        yield
    finally:
        _forced.reset(token)


def computed_once(function: Callable, **static: Any) -> Callable:
    """Keeps XLA on CPUs from recomputing a cheap value in every operation that reads it.

    Keywords are static. Calls of one function with equal shapes are traced and lowered once.
    """
    compiled = jax.jit(function, static_argnames=tuple(static))

    def call(*arguments):
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments, **static)

    return call


def remat_options(backend: str) -> dict[str, str]:
    """Compiler options that keep what rematerialisation computes a second time.

    Without them XLA's CPU compiler merges the second computation with the first, and no memory
    is saved.
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if backend == "cpu" else {}
