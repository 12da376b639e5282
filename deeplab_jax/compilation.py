"""Settings of XLA's compiler: its cache, its memory and determinism."""

import ctypes
import os
import sys
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

LONG = 0.5
"""Programs that took this many seconds to compile are cached, and memory is released after them."""


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, where later processes find them.

    If there is no such folder, a note on stderr says so and nothing is kept.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME, and a user without an entry in the system's list
        note = "note: there is no home folder, so that compiled programs are not kept; set "
        print(f"{note}XDG_CACHE_HOME to a folder to keep them", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache / "deeplab_jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LONG)


def release_compiler_memory() -> None:
    """Returns memory freed by the compiler to the operating system, after each compilation.

    Otherwise the C allocator keeps 0.8 GB after the update of ResNet-101 is compiled, which no
    array can use. Uses glibc's malloc_trim; with other C libraries nothing happens.
    """
    trim = getattr(ctypes.CDLL(None) if os.name == "posix" else None, "malloc_trim", None)
    if trim is None:
        return

    def compiled(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and duration_secs > LONG:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(compiled)


def make_deterministic(folder: Path) -> None:
    """Makes a resumed run on a GPU give the same bits. Call it before JAX starts a device.

    XLA then excludes operations whose order of summation varies. Programs are kept in `folder`,
    since compiling one again may choose other kernels: XLA times them, and other work on the GPU
    changes what it finds.
    """
    flags = os.environ.get("XLA_FLAGS", ""), "--xla_gpu_exclude_nondeterministic_ops=true"
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # keyed by their folder
    reset_cache()  # which may have been opened in the user's folder
