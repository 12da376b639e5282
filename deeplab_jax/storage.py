"""Files that are written whole or not at all, and locks that end with their process."""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def written_whole(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """A hidden name beside `path` to write to; it is renamed to `path` at the end.

    `path` has its old content or all of the new one, whenever the process or the machine stops. The
    name ends as `path` does, because some libraries choose a format by it. What a killed process
    leaves is overwritten by the next one. With `concurrent` each process has a name of its own.

    Raises:
      OSError: the file cannot be written; nothing is left of it.
    """
    number = f"{os.getpid()}-" if concurrent else ""
    partial = path.with_name(f".partial-{number}{path.name}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_lock(file: IO | int) -> bool:
    """Takes the exclusive lock of an open file or folder; False if another process has a lock.

    The lock ends when the file is closed.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def share_lock(file: IO | int) -> None:
    """Takes a lock of an open file that other processes may share."""
    fcntl.flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def hold(path: Path, *, note: str) -> Iterator[None]:
    """Holds the exclusive lock of the file `path`, which is made if it is missing.

    If another process holds it, `note` is printed on stderr, and this one waits.
    """
    with path.open("w") as file:
        if not try_lock(file):
            print(note, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
