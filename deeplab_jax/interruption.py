"""SIGTERM and SIGINT end a script with status 75; a run saves before.

Between two updates a run asks for the flag that a signal sets: after the first signal it saves and
ends; if nothing would be lost, it ends at once. A second SIGINT, half a second later or more, ends
it at once in any case, with status 130. A thread watches for signals, because Python's own handlers
run only after a compilation or a kernel has returned.

With several processes JAX's pre-emption service passes the signal on. It chooses a number of calls
of `should_stop` that no process has reached yet, and all of them stop at that call.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the same command resumes the run."""

QUIT_STATUS = 128 + signal.SIGINT

POLL_SECONDS = 0.002
TOGETHER = 0.5  # seconds: `timeout` sends one signal to a process and another to its group


class Stopped(Exception):
    """The run ends because of a signal; the text says what is saved."""


class Interruption:
    """Whether a signal has come, and how it is handled; see `watch`."""

    def __init__(self):
        self.requested = threading.Event()
        self.ends_at_once = True
        self.num_calls = 0
        self.since = 0.0

    @property
    def one_process(self) -> bool:
        return not jax.distributed.is_initialized()

    def should_stop(self) -> bool:
        """Whether to end here. All processes must call it equally often."""
        if self.one_process:
            return self.requested.is_set()
        self.num_calls += 1
        return multihost_utils.reached_preemption_sync_point(self.num_calls)

    def between(self, numbers: Sequence[int], *, longest: int) -> Iterator[int]:
        """The numbers, with a call of `should_stop` after each.

        `longest` is the largest count of numbers in any process: all call equally often. Raises
        Stopped where the processes are to end; all was saved before.
        """
        for i in range(longest):
            yield from numbers[i : i + 1]
            if self.should_stop():
                raise Stopped("all that was done is saved")

    def wait_or_stop(self, values: Any) -> bool:
        """Waits for arrays and gives True; False if a signal comes before they are computed."""
        while not all(leaf.is_ready() for leaf in jax.tree.leaves(values)):
            if self.requested.is_set() and self.one_process:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def defer(self) -> None:
        """Signals set a flag from now on; before, they end the process."""
        self.ends_at_once = False

    def restore(self) -> None:
        """Signals end the process from now on; call it when all results are saved. Raises Stopped
        where one came before."""
        self.ends_at_once = True
        if self.one_process and self.requested.is_set():
            raise Stopped("all that was done is saved")

    def answer(self, number: int) -> None:
        """Handles one signal; called by the watching thread."""
        if self.requested.is_set():
            if number == signal.SIGINT and time.monotonic() - self.since >= TOGETHER:
                os._exit(QUIT_STATUS)
            return
        self.since = time.monotonic()
        self.requested.set()
        if not self.one_process:
            os.kill(os.getpid(), signal.SIGTERM)  # the pre-emption service waits for it
        elif self.ends_at_once:
            leave("nothing was to be saved")


def leave(why: str) -> NoReturn:
    """Ends the process without waiting for computations under way."""
    with contextlib.suppress(Exception):  # whatever reads the output may be gone
        sys.stdout.flush()
        newline = "\n" if sys.stderr.isatty() else ""
        print(f"{newline}stopped: {why}; type the same command again to go on", file=sys.stderr)
        sys.stderr.flush()
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()
    os._exit(EXIT_STATUS)


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Watches for signals; for the main thread of a script. Stopped ends the process.

    Within a run of several processes SIGTERM is left to JAX's pre-emption service.
    """
    interruption = Interruption()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            interruption.answer(number[0])
        os.close(reader)

    threading.Thread(target=listen, daemon=True).start()
    mine = (signal.SIGINT, signal.SIGTERM) if interruption.one_process else (signal.SIGINT,)
    before = {number: signal.signal(number, lambda *_: None) for number in mine}
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield interruption
    except Stopped as stopped:
        leave(str(stopped))
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
