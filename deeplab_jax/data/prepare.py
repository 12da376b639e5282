"""Prepared data sets on disk: keyed by a fingerprint, built once, complete or absent.

The split of a folder lies in `<prepared_dir>/<folder>-<hash of its path>/<split>-<fingerprint>`.
It is built beside that and renamed when complete, under the file `lock` there. Locks are the
system's and die with the process that holds them.
"""

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tarfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator
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

CONTENT = "content.sha256"
"""The file of a prepared split that tells what its records hold."""

USED = "features.json"
"""The file of a prepared split that is locked by those who read it."""

ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip")

FOLDERS = {"stuffthingmaps_trainval2017.zip": "stuffthingmaps_trainval2017"}
"""Subfolders for archives whose files have the same names as those of another archive."""


def path_of(folder: Path, prepared_dir: Path) -> Path:
    """Where the splits of `folder` are prepared; two folders of one name have two such folders."""
    folder = folder.resolve()
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return prepared_dir / f"{folder.name}-{digest}"


def prepare(
    builder: type[tfds.core.GeneratorBasedBuilder], config: Any, *, parent: Path, fingerprint: str
) -> Path:
    """The folder of the split `config.name`; built where it is missing, while other processes wait
    for it. The builder updates the hash `config.content`. Older states are removed."""
    path = parent / f"{config.name}-{FORMAT}{fingerprint}"
    if not path.is_dir():
        with locked(parent / "lock"):
            if not path.is_dir():
                with unfinished(path) as folder, silent_tfds():
                    made = builder(data_dir=folder, config=config, file_format="array_record")
                    made.download_and_prepare()
                    (Path(made.data_dir) / CONTENT).write_text(config.content.hexdigest())
                    Path(made.data_dir).rename(path)
                remove_older(path, config.name)
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{config.name}: {path} ({size / 1e6:.1f} MB)", file=sys.stderr)
    return path


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A folder to make and rename to `path`; what a killed process or a fault leaves is removed."""
    folder = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    except (OSError, RuntimeError) as error:  # ArrayRecord tells only by the text of the latter
        if not any(os.strerror(number) in str(error) for number in storage.FULL):
            raise
        raise UserError(f"{path.parent} is on a full disk; make room there.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Makes the folder of `path`, and holds its lock, waiting for the process that holds it."""
    with storage.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with storage.hold(path, note=f"waiting for another process that prepares {path.parent}"):
        yield


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
    for other in path.parent.glob(f"{split}-*"):  # which finds those of a split `train-2`, too
        if other != path and len(other.name) == len(path.name) and not is_used(other):
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


def find_archives(root: Path) -> list[Path]:
    """The .tar, .tgz and .zip files of a folder, in order of their names."""
    return visible(path for path in root.iterdir() if path.name.lower().endswith(ARCHIVES))


def unpack(root: Path, parent: Path) -> Path:
    """A folder below `parent` with all archives of `root` unpacked, again where one has changed,
    and links to its other files. Prints the folder on stderr."""
    archives = find_archives(root)
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in archives]
    whole = parent / f"unpacked-{hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]}"
    path = whole / root.resolve().name
    with locked(parent / "lock"):
        if not path.is_dir():
            with unfinished(whole) as folder:
                for archive in tqdm(archives, desc="unpack", disable=None):
                    unpack_one(archive, folder / path.name / FOLDERS.get(archive.name, ""))
                folder.rename(whole)
            for older in set(parent.glob("unpacked-*")) - {whole}:
                shutil.rmtree(older)
        others = set(visible(root.iterdir())) - {*archives}
        inside = {p for p in others if parent.resolve().is_relative_to(p.resolve())}
        link_all(others - inside, path)
    print(f"archives of {root}: {path}", file=sys.stderr)
    return path


def unpack_one(archive: Path, folder: Path) -> None:
    """Unpacks an archive; Python lets no member lead out of `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    is_zip = archive.name.lower().endswith(".zip")
    opened: Any = zipfile.ZipFile if is_zip else tarfile.open
    try:
        with opened(archive) as file:
            file.extractall(folder, **({} if is_zip else {"filter": "data"}))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged ({error}); get the archive again.") from None


def link_all(paths: Iterable[Path], folder: Path) -> None:
    """Links files and folders into `folder`; existing subfolders get links to what they lack."""
    for path in paths:
        link = folder / path.name
        if not link.exists():
            link.unlink(missing_ok=True)  # a broken link
            link.symlink_to(path.resolve())
        elif link.is_dir() and not link.is_symlink() and path.is_dir():
            link_all(path.iterdir(), link)
