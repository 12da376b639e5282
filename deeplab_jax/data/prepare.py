"""Prepared data sets on disk: keyed by a fingerprint, built once, complete or absent.

The split of a folder lies in `<prepared_dir>/<folder>-<hash of its path>/<split>-<fingerprint>`.
It is built beside that and renamed when complete, under the file `lock` there. Locks are the
system's and die with the process that holds them.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import sys
import tarfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from tqdm import tqdm

from deeplab_jax import storage
from deeplab_jax.data.listing import visible
from deeplab_jax.types import UserError

FORMAT = "4"
"""Part of every key; increase it when the format of the records changes."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

CONTENT = "content.sha256"
"""The file of a prepared split that tells what its records hold."""

USED = "features.json"
"""The file of a prepared split that is locked by those who read it."""


def path_of(folder: Path, prepared_dir: Path) -> Path:
    """Where the splits of `folder` are prepared; two folders of one name have two such folders."""
    folder = folder.resolve()
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return prepared_dir / f"{folder.name}-{digest}"


def prepare(
    builder: type[tfds.core.GeneratorBasedBuilder],
    config: Any,
    *,
    parent: Path,
    fingerprint: str,
) -> Path:
    """The folder of the prepared split `config.name`, built first where it is not there.

    Other processes that want it wait meanwhile. Older states of the split are removed afterwards.
    """
    path = parent / f"{config.name}-{FORMAT}{fingerprint}"
    if not path.is_dir():
        make_writable(parent)
        with locked(parent / "lock"):
            if not path.is_dir():
                build(builder, config, path)
                remove_older(path, config.name)
    print(f"{config.name}: {path} ({megabytes(path):.1f} MB)", file=sys.stderr)
    return path


def build(builder: type[tfds.core.GeneratorBasedBuilder], config: Any, path: Path) -> None:
    """Write the records beside `path`, then rename.

    `config` is a tfds.core.BuilderConfig with a hash `content` that the builder updates.
    """
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a process that was killed
    try:
        with silent_tfds():
            prepared = builder(data_dir=unfinished, config=config, file_format="array_record")
            prepared.download_and_prepare()
        (Path(prepared.data_dir) / CONTENT).write_text(config.content.hexdigest())
        Path(prepared.data_dir).rename(path)
    except (OSError, RuntimeError) as error:
        if not tells_full_disk(error):
            raise
        raise UserError(f"{path.parent} is on a full disk; make room there.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def tells_full_disk(error: Exception) -> bool:
    """Whether there is no room; ArrayRecord says so in the text of a RuntimeError only."""
    return any(os.strerror(number) in str(error) for number in FULL)


def make_writable(parent: Path) -> None:
    """Makes the folder of prepared data.

    Raises:
      UserError: it cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        (parent / "lock").touch()
    except OSError as error:
        raise UserError(
            f"{parent} cannot be written ({error.strerror}); choose another prepared_dir."
        ) from None


@contextlib.contextmanager
def silent_tfds() -> Iterator[None]:
    """Silences TFDS's own bars and messages; builders show a bar of ours on stderr."""
    tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


def remove_older(path: Path, split: str) -> None:
    """Remove unused data that was prepared from earlier states of the same split."""
    length = len(path.name) - len(split)
    for other in path.parent.glob(f"{split}-*"):
        if other != path and len(other.name) - len(split) == length and not is_used(other):
            shutil.rmtree(other)


def keep_while_used(path: Path, user: object) -> None:
    """Keep a prepared split from being removed for as long as `user` lives in this process."""
    file = os.open(path / USED, os.O_RDONLY)
    storage.try_lock(file, shared=True, wait=True)
    weakref.finalize(user, os.close, file)


def is_used(path: Path) -> bool:
    """Whether a process reads the prepared data in the folder, or may do so unseen."""
    try:
        with (path / USED).open("r+") as file:  # NFS locks only what is open for writing
            return not storage.try_lock(file, without_locks=False)
    except PermissionError:
        return True


def locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of `path`, waiting for the process that holds it."""
    note = f"waiting for another process that prepares {path.parent}"
    return storage.hold(path, note=note)


def megabytes(path: Path) -> float:
    """Size of the files in a folder, in 10^6 bytes."""
    return sum(file.stat().st_size for file in path.iterdir()) / 1e6


# Data sets that still lie in the archives in which their owners distribute them.

TARS = (".tar", ".tgz", ".tar.gz")
ZIPS = (".zip",)

FOLDERS = {"stuffthingmaps_trainval2017.zip": "stuffthingmaps_trainval2017"}
"""Subfolders for archives whose files have the same names as those of another archive."""

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error)


def find_archives(root: Path) -> list[Path]:
    """The .tar, .tgz and .zip files of a folder, in order of their names."""
    return visible(path for path in root.iterdir() if path.name.lower().endswith(TARS + ZIPS))


def unpack(root: Path, parent: Path) -> Path:
    """A folder below `parent` with all archives of `root` unpacked, and links to its other files.

    Archives are unpacked once, and again where one has changed. Prints the folder on stderr.
    """
    archives = find_archives(root)
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in archives]
    key = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    path = parent / f"unpacked-{key}" / root.resolve().name
    make_writable(parent)
    with locked(parent / "lock"):
        if not path.is_dir():
            unpack_all(archives, path)
            for older in set(parent.glob("unpacked-*")) - {path.parent}:
                shutil.rmtree(older)
        others = [p for p in visible(root.iterdir()) if p not in archives and not holds(p, parent)]
        link_all(others, path)
    print(f"archives of {root}: {path}", file=sys.stderr)
    return path


def unpack_all(archives: Sequence[Path], path: Path) -> None:
    """Unpack beside the folder that holds `path`, then rename."""
    unfinished = path.parent.with_name("unpacked.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for archive in tqdm(archives, desc="unpack", disable=None):
            unpack_one(archive, unfinished / path.name / FOLDERS.get(archive.name, ""))
        unfinished.rename(path.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def holds(path: Path, parent: Path) -> bool:
    """Whether `parent` lies in the folder `path`."""
    return parent.resolve().is_relative_to(path.resolve())


def link_all(paths: Iterable[Path], folder: Path) -> None:
    """Links files and folders into `folder`; existing subfolders get links to what they lack."""
    for path in paths:
        link = folder / path.name
        if not link.exists():
            link.unlink(missing_ok=True)  # a broken link
            link.symlink_to(path.resolve())
        elif link.is_dir() and not link.is_symlink() and path.is_dir():
            link_all(path.iterdir(), link)


def unpack_one(archive: Path, folder: Path) -> None:
    """Unpacks an archive; Python refuses members whose path leads out of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if archive.name.lower().endswith(ZIPS):
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
        else:
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
    except DAMAGE as error:
        raise UserError(f"{archive} is damaged ({error}); get the archive again.") from None
