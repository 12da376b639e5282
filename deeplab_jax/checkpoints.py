"""Checkpoints with checksums, so that a damaged one is detected and never read.

<folder>/<step>/<item>/...       one tree of arrays, written by Orbax
<folder>/<step>/manifest.json    the step, and the SHA-256 of every other file below it
<folder>/<step>.damaged          a step whose files are not those of its manifest, set aside
<folder>/*.partial...            a save or a removal that was cut off; cleaned at the next start

A step appears by one rename when all its files are on disk and its arrays have been read back.
Orbax writes and reads the arrays; it does not notice a flipped bit or an empty step, saves NaN, and
its manager reports a full disk at the end of a run, which is why the steps are managed here. States
are replicated, so the process that saves has all of it.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from deeplab_jax import storage
from deeplab_jax.types import UserError

MANIFEST = "manifest.json"


def steps(folder: Path) -> list[int]:
    """The steps there, whole or damaged, in order."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def fault(folder: Path, step: int) -> str | None:
    """What is wrong with the files of a step, as the end of a sentence; None: nothing is. A file
    that cannot be read, which says nothing about what it holds, is a UserError."""
    path = folder / str(step)
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        wanted, written_for = dict(manifest["files"]), manifest["step"]
        if written_for != step:
            return f"was written as step {written_for}"
        found = digests(path)
    except FileNotFoundError:
        return f"has no {MANIFEST}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"has a {MANIFEST} that cannot be understood"
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read ({error.strerror}); mend that, or move "
            f"{path} away to go on from the checkpoint before it"
        ) from error
    strange = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    return f"has changed since it was written ({min(strange)})" if strange else None


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of each file of a step except its manifest; "a link" for links, which none has."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink():
            found[name] = "a link"
        elif file.is_file() and name != MANIFEST:
            with file.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def newest_good(folder: Path) -> tuple[int | None, dict[int, str]]:
    """The newest step that is whole, and what is wrong with each newer one."""
    wrong = {}
    for step in reversed(steps(folder)):
        found = fault(folder, step)
        if found is None:
            return step, wrong
        wrong[step] = found
    return None, wrong


def recover(folder: Path) -> int | None:
    """As `newest_good`, for the run that writes here: removes leftovers, renames damaged steps.

    A damaged step that is newer than the newest whole one is renamed, and named on stderr.
    """
    for leftover in folder.glob("*.partial*"):
        shutil.rmtree(leftover, ignore_errors=True)
    good, wrong = newest_good(folder)
    for step, why in wrong.items():
        path = folder / str(step)
        names = (path.with_name(f"{step}.damaged{n or ''}") for n in itertools.count())
        aside = next(name for name in names if not name.exists())
        path.rename(aside)
        print(f"warning: checkpoint {path} {why}; it is now {aside.name}", file=sys.stderr)
    if wrong and good is None:
        print(f"warning: no whole checkpoint is left in {folder}", file=sys.stderr)
    return good


def read(folder: Path, step: int, item: str, like: Any) -> Any:
    """A tree of a whole step as NumPy arrays with the shapes and types of `like`; a UserError where
    it holds other arrays, of which nothing is read."""
    path = folder / str(step) / item
    with plain(path.parent) as parent, _alone():
        there = _leaves(ocp.metadata(f"{parent}/{item}").metadata)
    wanted = _leaves(like)
    for name in {**wanted, **there}:
        if wanted.get(name) != there.get(name):
            raise UserError(
                f"checkpoint {path} holds {there.get(name, 'nothing')} as {name}, and the network "
                f"{wanted.get(name, 'nothing')}; give the options it was trained with"
            )
    return _load(path, like)


def _load(path: Path, like: Any) -> Any:
    as_numpy = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
    with plain(path.parent) as parent, _alone():
        return ocp.load(f"{parent}/{path.name}", as_numpy)


@contextlib.contextmanager
def plain(folder: Path) -> Iterator[str]:
    """A name of the folder that holds letters, digits, `.`, `_` and `-` alone.

    Orbax takes other characters of a path, such as `[`, for patterns and finds nothing. Where there
    are some, the name is a link in the folder of temporary files.
    """
    whole = str(folder.absolute())
    if re.fullmatch(r"[\w./-]+", whole, re.ASCII):
        yield whole
        return
    with tempfile.TemporaryDirectory(prefix="deeplab_jax-") as place:
        link = Path(place) / "step"
        link.symlink_to(whole, target_is_directory=True)
        yield str(link)


class Saver:
    """Writes checkpoints in a background thread, one at a time, and removes old ones.

    On leaving its context it waits for a save that is under way, even if the run has failed.
    """

    def __init__(self, folder: Path, *, keep_newest: int):
        self.folder, self.keep_newest = folder, keep_newest
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.under_way: Future | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, *raised: object) -> None:
        self.thread.shutdown()

    def save(self, step: int, items: Mapping[str, Any], *, keep: int | None = None) -> None:
        """Copies the trees and starts writing them; then removes old steps other than `keep`. A
        UserError where the save before this one failed."""
        self.wait()
        copies = jax.tree.map(np.array, dict(items))
        self.under_way = self.thread.submit(self._write, step, copies, keep)

    def check(self) -> None:
        """Raises the UserError of a save that has failed; waits for nothing."""
        if self.under_way is not None and self.under_way.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk; raises the UserError if its save failed."""
        if self.under_way is not None:
            under_way, self.under_way = self.under_way, None
            under_way.result()

    def _write(self, step: int, items: Mapping[str, Any], keep: int | None) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(items):
            if not np.isfinite(leaf).all():
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise UserError(
                    f"{name} is not finite after update {step}, which is not saved; the "
                    "checkpoints before it are whole"
                )
        partial = self.folder / f"{step}.partial"
        try:
            write_arrays(partial, items)
            write_manifest(partial, step)
            if (self.folder / str(step)).exists():
                remove(self.folder / str(step))
            publish(partial, self.folder / str(step))
            for old in steps(self.folder)[: -self.keep_newest]:
                if old != keep:
                    remove(self.folder / str(old))
        except (OSError, ValueError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            # TensorStore's are ValueErrors, "...: File too large [code]".
            why = getattr(error, "strerror", None) or str(error).split(": ")[-1].split(" [")[0]
            raise UserError(
                f"the checkpoint of update {step} could not be written to {self.folder} ({why}); "
                "those before it are whole: make room and type the same command again"
            ) from error


def write_arrays(path: Path, items: Mapping[str, Any]) -> None:
    """Writes the trees of a step and reads them back; an OSError or ValueError where they do not
    fit on the disk, or come back as others."""
    path.mkdir(parents=True)
    with (path / "room").open("wb") as file:  # Orbax prints tracebacks on a full disk
        try:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
            os.posix_fallocate(file.fileno(), 0, size)
        except AttributeError:
            pass  # macOS
        except OSError as error:
            if error.errno in storage.FULL:
                raise
    (path / "room").unlink()
    for item, tree in items.items():
        with plain(path) as folder, _alone():
            ocp.save(f"{folder}/{item}", tree)
        again = jax.tree.leaves(_load(path / item, tree))
        for leaf, found in zip(jax.tree.leaves(tree), again, strict=True):
            if leaf.tobytes() != found.tobytes():
                raise OSError(f"{item} was not read back as it was written")


def write_manifest(path: Path, step: int) -> None:
    """Completes a step's files, which are on disk when this returns."""
    manifest = {"step": step, "files": digests(path)}
    (path / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for written in (path, *path.rglob("*")):
        storage.sync(written)


def publish(partial: Path, path: Path) -> None:
    """Gives the files of a step its name."""
    partial.rename(path)
    storage.sync(path.parent)


def remove(path: Path) -> None:
    """Removes a step; it is renamed first, so that nothing half removed looks like a step.

    On a network disk a file that another process has open stays; `recover` removes it later.
    """
    doomed = path.with_name(f"{path.name}.partial-removal")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _alone() -> ocp.Context:
    """Orbax reads and writes for this process alone, whatever other processes do."""
    here, context = jax.process_index(), ocp.Context()
    context.multiprocessing.primary_host = here
    context.multiprocessing.active_processes = {here}
    context.multiprocessing.barrier_sync_key_prefix = f"process{here}"
    return context


def stop_comparing_folders() -> None:
    """Takes a comparison out of Orbax, for as long as this process, one of several, lives.

    Before a save Orbax compares the folders of all processes, even where one alone is active, and
    would wait for the others forever. It has no option against that.
    """
    try:
        from orbax.checkpoint.experimental.v1._src.saving import execution

        execution._check_directory_consistency  # noqa: B018 (an AttributeError where it is not)
    except (ImportError, AttributeError):
        raise UserError(
            f"orbax-checkpoint {version('orbax-checkpoint')} compares the folders of several "
            "processes otherwise than this software knows, and could wait forever; install "
            "orbax-checkpoint 0.12.8"
        ) from None
    execution._check_directory_consistency = lambda directory: None


def _leaves(tree: Any) -> dict[str, str]:
    """Type and shape of each array of a tree, by name."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
