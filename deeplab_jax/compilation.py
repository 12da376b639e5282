"""What a process wants of XLA's compiler besides programs."""

import ctypes
import os
import sys
from pathlib import Path

import jax

from deeplab_jax.choices import Precision

LONG = 0.5
"""Seconds of compiling that are worth the disk, and worth tidying up after."""

COMPILED = "/jax/core/compile/backend_compile_duration"


def keep_programs() -> None:
    """JAX finds programs compiled by an earlier process under the user's cache folder.

    Where there is none, a note on stderr says so, and every process compiles anew.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and a user without an entry in the system's list
        print(
            "note: there is no home folder, so that compiled programs are not kept; set "
            "XDG_CACHE_HOME to a folder to keep them",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(cache / "deeplab_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LONG)


def give_back_memory() -> None:
    """From here on what the compiler freed is the system's again before its program runs.

    An update of ResNet-101 leaves 0.8 GB of it with the allocator, which no array would be put
    into. Only glibc can be told so; elsewhere nothing happens.
    """
    trim = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "malloc_trim", None)

    def compiled(event: str, seconds: float, **_: object) -> None:
        if event == COMPILED and seconds > LONG:
            trim(0)

    if trim is not None:
        jax.monitoring.register_event_duration_secs_listener(compiled)


def choose_precision(precision: Precision) -> None:
    """What float32 convolutions and products are computed in, unless an operation says otherwise.

    `highest` is float32 everywhere. With `default` TPUs round the factors to bfloat16 and GPUs from
    Ampere on to TF32 (10 bits); `high` is three bfloat16 products on TPUs, and TF32 on GPUs. CPUs
    know only float32.
    """
    jax.config.update("jax_default_matmul_precision", precision)


def make_deterministic(folder: Path) -> None:
    """Every run of a program on a GPU gives the same bits; to be called before JAX has a device.

    XLA then excludes operations that add in another order each time, and what it has measured to
    be fastest is kept in `folder`, so that a run that goes on takes the same kernels.
    """
    flags = (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_gpu_exclude_nondeterministic_ops=true",
        f"--xla_gpu_per_fusion_autotune_cache_dir={folder.absolute()}",
    )
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
