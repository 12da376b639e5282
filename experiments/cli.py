"""What every script does first: read its command line, and say a user's mistake in one sentence."""

import difflib
import errno
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

import jax
import tyro

from deeplab_jax import compilation
from deeplab_jax.config import Config, Request
from deeplab_jax.presets import FIXED, RENAMED, ROWS
from deeplab_jax.types import UserError

C = TypeVar("C")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

STYLE = (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)


def parse_preset(presets: Mapping[str, Config], default: str, description: str) -> Request:
    """The preset named by the first argument, its fields changed by the options after it.

    The work folder is runs/<preset> where none is given. A preset answers to its earlier name, too,
    and the work folder has the name that was typed.
    """
    ignore_broken_pipes()
    arguments = sys.argv[1:]
    named = bool(arguments) and not arguments[0].startswith("-")
    name = given = arguments.pop(0) if named else default
    if given in RENAMED:
        name = RENAMED[given]
        print(f"the preset {given} is called {name}", file=sys.stderr)
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.0)[0]
        fail(f"there is no preset {name}; did you mean {near}? All: {', '.join(presets)}")
    typed = typed_fields(arguments)
    for gone in sorted(typed & GONE.keys()):
        fail(f"the option --{gone.replace('_', '-')} is gone: {GONE[gone]}")
    listed = f"{description}\n\nPresets: {', '.join(presets)}. These are the options of {name}."
    config = tyro.cli(
        Config, default=presets[name], args=arguments, description=listed, config=STYLE
    )
    config = replace(config, workdir=config.workdir or Path("runs") / given)
    return Request(
        config,
        preset=name,
        typed=typed,
        fixed=FIXED if name in ROWS else frozenset(),
        formerly=frozenset(old for old, new in RENAMED.items() if new == name),
    )


GONE = {
    "formulation": "the operations of each platform are chosen when a program is compiled for it",
}
"""Options of earlier versions, and what to do without them."""


def typed_fields(arguments: Sequence[str]) -> frozenset[str]:
    """The fields that options name.

    >>> sorted(typed_fields(["--num-steps", "5", "--model.aspp-rates=1", "--seed", "-1"]))
    ['model.aspp_rates', 'num_steps', 'seed']
    """
    options = (a[2:].split("=")[0] for a in arguments if a.startswith("--"))
    return frozenset(option.replace("-", "_") for option in options)


def parse(kind: type[C], description: str) -> C:
    """The options of a script that has no presets."""
    ignore_broken_pipes()
    return tyro.cli(kind, description=description)


def check_positive(**counts: int | None) -> None:
    """Refuses a count below 1, by its option's name.

    Raises:
      UserError: the first such one.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {count}")


def crf_options(options: Any) -> dict[str, Any]:
    """What the options of a script say to `crf.refine`, beside its parameters."""
    return {"max_pixels": options.crf_max_pixels, "prune_below": options.crf_prune_below}


def run(main: Callable[[C], None], config: C) -> None:
    """Calls `main`; a mistake of the user's, or a full disk, ends with a sentence and status 2."""
    compilation.enable_compilation_cache()
    compilation.release_compiler_memory()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors come as exceptions
    try:
        main(config)
    except UserError as error:
        fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        first_line = str(error).splitlines()[0]
        fail(f"the processes lost each other ({first_line}); start all of them again to go on")
    except (RuntimeError, AssertionError):
        if can_start_devices():
            raise
        named = jax.config.jax_platforms or "not set"
        fail(
            f"JAX can start no device: JAX_PLATFORMS is {named}; leave that variable out to let "
            "JAX choose, or give cpu, or install JAX for this accelerator"
        )
    except OSError as error:
        if error.errno not in FULL:
            raise
        fail(
            f"a file could not be written: {error.strerror}; make room, and type the command again"
        )


def can_start_devices() -> bool:
    """Whether JAX can start the devices it was asked for, such as by JAX_PLATFORMS.

    Where it cannot, it raises a RuntimeError or, for CUDA without a card, an AssertionError.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        return False
    return True


def ignore_broken_pipes() -> None:
    """Goes on after the reader of stdout or stderr has gone, see `Output`."""
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)


class Output:
    """A stream whose reader may go: `| head`, Ctrl-C to `| tee`, a terminal that is closed.

    Later output is dropped, and the work goes on until its results are complete.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return self._or_drop(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._or_drop(self.stream.flush)

    def _or_drop(self, call: Callable, *arguments: str) -> int | None:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    if jax.distributed.is_initialized():
        os._exit(2)  # an orderly end would wait for the other processes, which wait for this one
    sys.exit(2)
