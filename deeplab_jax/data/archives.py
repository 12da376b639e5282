"""Data sets that still lie in the archives in which their owners distribute them."""

import hashlib
import shutil
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from deeplab_jax.data import prepare
from deeplab_jax.data.listing import visible
from deeplab_jax.types import UserError

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
    prepare.make_writable(parent)
    with prepare.locked(parent / "lock"):
        if not path.is_dir():
            unpack_all(archives, path)
            remove_older(path.parent)
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


def remove_older(folder: Path) -> None:
    """Remove what earlier states of the archives held."""
    for other in folder.parent.glob("unpacked-*"):
        if other != folder:
            shutil.rmtree(other)


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
