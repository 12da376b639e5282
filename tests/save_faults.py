"""Faults inside a save, for programs of tests, and damage to what was saved."""

import contextlib
import os
import resource
import signal

from deeplab_jax import checkpoints

PLACES = ("arrays", "manifest", "half a manifest", "rename", "committed", "removal")
"""Before the arrays, the manifest, half of it, the rename, the removal of older steps, and inside
that."""


def before(module, name, act):
    """Has `act` called before each call of a function, with the function's arguments."""
    function = getattr(module, name)

    def acting(*arguments, **options):
        act(*arguments, **options)
        return function(*arguments, **options)

    setattr(module, name, acting)


def kill_in_save(place, count=1):
    """SIGKILL of this process inside its save number `count`, at one of PLACES."""
    saves = []

    def kill(path, *_, **__):
        if len(saves) < int(count) or (place == "removal" and "removal" not in str(path)):
            return
        if place == "half a manifest":
            (path / checkpoints.MANIFEST).write_text('{\n "step": 2,\n "files": {\n  "model/man')
        os.kill(os.getpid(), signal.SIGKILL)

    module, name = {
        "arrays": (checkpoints, "write_arrays"),
        "rename": (checkpoints, "publish"),
        "committed": (checkpoints, "steps"),
        "removal": (checkpoints.shutil, "rmtree"),
    }.get(place, (checkpoints, "write_manifest"))
    before(module, name, kill)
    before(checkpoints, "write_arrays", lambda path, items: saves.append(path))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << (len(data) % 8)
    path.write_bytes(data)


@contextlib.contextmanager
def full_disk(size):
    """No file may be larger, as at the end of a disk."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
