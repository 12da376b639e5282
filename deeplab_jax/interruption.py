"""SIGTERM and SIGINT as a question that a run asks between two updates.

The first signal asks the run to save and end with EXIT_STATUS; where nothing would be lost it ends
at once. A second SIGINT ends it at once everywhere, by status 130. A thread watches for signals,
because Python's own handlers wait for a compilation or a kernel to return.

With several processes JAX's pre-emption service spreads the word and names a question, which all
of them have yet to ask, as the one that is answered by yes.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the same command, typed again, goes on."""

QUIT_STATUS = 128 + signal.SIGINT

POLL_SECONDS = 0.002


class Stopped(Exception):
    """The run ends as it was asked to; the text says what is saved."""


class Interruption:
    """Whether the run was asked to end; see `watch`."""

    def __init__(self):
        self.asked = threading.Event()
        self.nothing_to_lose = True
        self.alone = jax.process_count() == 1
        self.questions = 0

    def is_asked(self) -> bool:
        """Whether to end here; every process asks the same number of times on its way here."""
        if self.alone:
            return self.asked.is_set()
        self.questions += 1
        return multihost_utils.reached_preemption_sync_point(self.questions)

    def between(self, numbers: Sequence[int], *, longest: int) -> Iterator[int]:
        """The numbers, `longest` of them at most in any process, with a question after each.

        Raises:
          Stopped: the processes are to end; all was saved before.
        """
        for turn in range(longest):
            yield from numbers[turn : turn + 1]
            if self.is_asked():
                raise Stopped("all that was done is saved")

    def outwait(self, values: Any) -> bool:
        """Waits for arrays; False as soon as the run is to end and they are not there."""
        while not all(leaf.is_ready() for leaf in jax.tree.leaves(values)):
            if self.asked.is_set() and self.alone:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def hold_back(self) -> None:
        """From here on a signal is a question; until then it ends the process."""
        self.nothing_to_lose = False

    def let_go(self) -> None:
        """From here on a signal ends the process; all that was done is saved.

        Raises:
          Stopped: one has come already.
        """
        self.nothing_to_lose = True
        if self.alone and self.asked.is_set():
            raise Stopped("all that was done is saved")

    def answer(self, number: int) -> None:
        """Called by the watching thread for each signal."""
        if number == signal.SIGINT and self.asked.is_set():
            os._exit(QUIT_STATUS)
        self.asked.set()
        if not self.alone:
            os.kill(os.getpid(), signal.SIGTERM)  # which the pre-emption service waits for
        elif self.nothing_to_lose:
            leave("nothing was to be saved")


def leave(why: str) -> None:
    """Ends the process without waiting for what devices still compute."""
    print(f"stopped: {why}; the same command goes on", file=sys.stderr)
    sys.stdout.flush()
    if jax.process_count() > 1:
        jax.distributed.shutdown()
    os._exit(EXIT_STATUS)


@contextlib.contextmanager
def watch() -> Iterator[Interruption]:
    """Signals as an Interruption, for the main thread of a script; Stopped ends the process."""
    interruption = Interruption()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while number := os.read(reader, 1):
            interruption.answer(number[0])
        os.close(reader)

    threading.Thread(target=listen, daemon=True).start()
    mine = (signal.SIGINT, signal.SIGTERM) if interruption.alone else (signal.SIGINT,)
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
