"""What every script does first: parse its options, and report a user's mistake in one sentence.

A script parses its options before it imports JAX and what needs it, which takes seconds, so that
help and messages come at once.
"""

import contextlib
import difflib
import errno
import importlib.util
import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

REQUIRED = (
    *("deeplab_jax", "tyro", "numpy", "jax", "jaxlib", "flax", "optax", "orbax", "grain"),
    *("PIL", "matplotlib", "scipy", "tqdm", "tensorboardX", "safetensors", "jaxtyping"),
)
"""What scripts import. Without one of them the wrong Python was probably started."""


def refuse_missing(names: Sequence[str]) -> None:
    """Ends the process where a package is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        here = os.path.relpath(Path(__file__).parents[1])
        print(
            f"error: {missing[0]} is not installed for {sys.executable}; type "
            f"{os.path.basename(sys.executable)} -m pip install -e {here}",
            file=sys.stderr,
        )
        sys.exit(2)


refuse_missing(REQUIRED)

import options as names  # noqa: E402
import tyro  # noqa: E402
import usage  # noqa: E402

from deeplab_jax.config import Config, Request  # noqa: E402
from deeplab_jax.errors import UserError  # noqa: E402
from deeplab_jax.presets import FIXED, ROWS  # noqa: E402

RENAMED: dict = {}

C = TypeVar("C")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

STOPPED = 75
"""Exit status after Ctrl-C or SIGTERM: EX_TEMPFAIL of sysexits.h, as interruption.py has it."""

STYLE = (tyro.conf.AvoidSubcommands,)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's banners; its errors stay

typed_fields = names.typed_fields


def parse_preset(presets: Mapping[str, Config], default: str, description: str) -> Request:
    """The preset named by the first argument, its fields changed by the options after it.

    The work folder is runs/<preset> where none is given. A preset answers to its earlier name, too,
    and the work folder has the name that was typed.
    """
    ignore_broken_pipes()
    given, arguments = take_preset(sys.argv[1:], default)
    name = RENAMED.get(given, given)
    if name != given:
        print(f"the preset {given} is called {name}", file=sys.stderr)
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1, cutoff=0.0)[0]
        fail(f"there is no preset {name}; did you mean {near}? All: {', '.join(presets)}")
    if asks_for_help(arguments):
        told = f"Presets: {', '.join(presets)}.\n\nThese are the options of {name}."
        told = f"{description.strip()}\n\n{told}"
        show_help(Config, presets[name], told, usage.FIRST, "[PRESET]")
    for gone in sorted(typed_fields(arguments) & GONE.keys()):
        fail(f"the option --{gone.replace('_', '-')} is gone: {GONE[gone]}")
    arguments = in_our_words(Config, arguments)
    config = read_config(presets[name], arguments)
    config = replace(config, workdir=config.workdir or Path("runs") / given)
    return Request(
        config,
        preset=name,
        typed=typed_fields(arguments),
        fixed=FIXED if name in ROWS else frozenset(),
        formerly=frozenset(old for old, new in RENAMED.items() if new == name),
        command=shlex.join(["python", *sys.argv]),
    )


def take_preset(arguments: Sequence[str], default: str) -> tuple[str, list[str]]:
    """The preset, first or behind --help, and the other arguments.

    >>> take_preset(["--help", "small"], "voc")
    ('small', ['--help'])
    """
    for position, word in enumerate(arguments):
        if not word.startswith("-"):
            return word, [*arguments[:position], *arguments[position + 1 :]]
        if word not in ("-h", "--help"):
            break
    return default, list(arguments)


def read_config(preset: Config, arguments: Sequence[str], *, script: str | None = None) -> Config:
    """The preset with its fields changed by options in the form of options.canonical."""
    return tyro.cli(Config, default=preset, args=list(arguments), prog=script, config=STYLE)


def in_our_words(kind: type, arguments: Sequence[str]) -> list[str]:
    """`options.canonical`; a mistake ends the process with a sentence."""
    try:
        return names.canonical(kind, arguments)
    except UserError as error:
        fail(str(error))


def asks_for_help(arguments: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(arguments))


def show_help(
    kind: type, default: Any, description: str, first: Sequence[str] = (), before: str = ""
) -> None:
    """Prints the options and ends the process."""
    path = Path(sys.argv[0]).resolve()
    here = Path(__file__).resolve().parent
    name = path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name
    script = f"{name} {before}".strip()
    print(usage.page(kind, default, script=script, description=description, first=first))
    sys.stdout.flush()
    sys.exit(0)


GONE = {
    "formulation": "the operations of each platform are chosen when a program is compiled for it",
}
"""Options of earlier versions, and what to do without them."""


def parse(kind: type[C], description: str) -> C:
    """The options of a script that has no presets."""
    ignore_broken_pipes()
    arguments = sys.argv[1:]
    if asks_for_help(arguments):
        show_help(kind, None, description)
    return tyro.cli(kind, args=in_our_words(kind, arguments), description=description, config=STYLE)


def answer_signals() -> None:
    """Makes Ctrl-C and SIGTERM end the process at once with a sentence and status 75.

    A thread reacts, since Python's own handlers wait for a compilation to return. Scripts write
    files under another name first, so that none is left incomplete.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] in (signal.SIGINT, signal.SIGTERM):
                stop()

    threading.Thread(target=listen, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def stop(what: str = "") -> None:
    """Ends the process with a sentence and status 75: the same command resumes the work."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        newline = "\n" if sys.stderr.isatty() else ""
        print(f"{newline}stopped{what}: type the same command again to go on", file=sys.stderr)
        sys.stderr.flush()
    os._exit(STOPPED)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Within it Ctrl-C and SIGTERM raise KeyboardInterrupt, for work that has to clean up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    fd = signal.set_wakeup_fd(-1)
    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)


def split_arguments() -> tuple[str, ...]:
    """Takes what follows "--" off the command line: options for every train_voc.py."""
    if "--" not in sys.argv:
        return ()
    position = sys.argv.index("--")
    common = tuple(sys.argv[position + 1 :])
    del sys.argv[position:]
    return common


def check_positive(**counts: int | None) -> None:
    """Refuses a count below 1, by its option's name.

    Raises:
      UserError: the first such one.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {count}")


def crf_host() -> Any:
    """The CPU that runs the CRF where the devices are TPUs, which a sentence says; else None."""
    from deeplab_jax.crf import refinement

    host = refinement.host_of_tpu()
    if host is not None:
        print("the CRF runs on the host's CPU, which is expected to take less time than a TPU")
    return host


def refine_function() -> Callable[..., Any]:
    """What refines a photograph in a script: crf.refine, or crf.refine_on_host; see crf_host."""
    from deeplab_jax import crf

    return crf.refine if crf_host() is None else crf.refine_on_host


def run(main: Callable[[C], None], config: C) -> None:
    """Calls `main`; a mistake of the user's, or a full disk, ends with a sentence and status 2."""
    import jax

    from deeplab_jax import compilation

    compilation.enable_compilation_cache()
    compilation.release_compiler_memory()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors come as exceptions
    try:
        main(config)
    except UserError as error:
        fail(str(error))
    except KeyboardInterrupt:
        stop()
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
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        return False
    return True


def ignore_broken_pipes() -> None:
    """Lets the script go on when the reader of stdout or stderr ends, see `Output`."""
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)


class Output:
    """A stream whose reader may end: `| head`, Ctrl-C to `| tee`, a closed terminal.

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


def fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        os._exit(2)  # a normal exit would wait for the other processes, which wait for this one
    sys.exit(2)
