"""Files that are written whole or not at all, and locks that end with their process."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deeplab_jax.choices import UserError

try:
    import fcntl
except ImportError:
    raise ImportError("deeplab_jax runs on Linux and macOS; on Windows, start it in WSL") from None

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that is full, of a quota, and of a limit on the size of files."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the file system as a UserError that says that `path` could not be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); mend that, or make room, and type the "
            "same command again"
        ) from error


@contextlib.contextmanager
def written_whole(path: Path, *, concurrent: bool = False) -> Iterator[Path]:
    """A hidden name beside `path` to write to; it is renamed to `path` at the end.

    `path` has its old content or all of the new one, whenever the process or the machine stops. The
    name ends as `path` does, because some libraries choose a format by it. What a killed process
    leaves is overwritten by the next one. With `concurrent` each process has a name of its own. Of
    a file that cannot be written nothing is left, and that is a UserError.
    """
    number = f"{os.getpid()}-" if concurrent else ""
    partial = path.with_name(f".partial-{number}{path.name}")
    try:
        with writing(path):
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


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EBADF, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer; NFS has none for what is open for reading alone."""


def try_lock(
    file: IO | int, *, shared: bool = False, wait: bool = False, without_locks: bool = True
) -> bool:
    """Takes the lock of an open file or folder; False if another process has it.

    The lock ends when the file is closed. Where the file system has no locks, the answer is
    `without_locks`, and if that is True a note on stderr says so.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if without_locks:
            note = "note: this file system has no locks; start no second run in the same folder"
            print(note, file=sys.stderr)
        return without_locks
    return True


@contextlib.contextmanager
def hold(path: Path, *, note: str) -> Iterator[None]:
    """Holds the exclusive lock of the file `path`, which is made if it is missing.

    If another process holds it, `note` is printed on stderr, and this one waits.
    """
    with path.open("w") as file:
        if not try_lock(file):
            print(note, file=sys.stderr)
            try_lock(file, wait=True)
        yield
