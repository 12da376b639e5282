"""Weight files in a zip, as the authors' prototxt_and_model.zip: given as ZIP, or as ZIP/NAME.

The member is unpacked into a temporary folder while it is read.
"""

import contextlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from deeplab_jax.types import UserError
from deeplab_jax.weights.files import MAX_EXPANSION

MAX_DIRECTORY = 4 * 2**20
"""Bytes of a zip's directory, which takes 13 times as much memory; a ResNet-101 takes 60 kB."""
SUFFIXES = (".caffemodel", ".pth", ".pt", ".safetensors")


def member_of(path: Path) -> tuple[Path, str] | None:
    """The zip file and the name in it that `path` consists of; None where it is no such path."""
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None or not zipfile.is_zipfile(archive):
        return None
    return archive, path.relative_to(archive).as_posix()


def names_in(path: Path) -> list[str]:
    """The names in a zip file; empty where `path` is none, or damaged.

    Raises:
      UserError: there are so many that their list would fill the memory.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return []
    with path.open("rb") as file:
        size = zipfile._EndRecData(file)[zipfile._ECD_SIZE]  # pyright: ignore
    if size > MAX_DIRECTORY:
        raise UserError(f"{path} has a directory of {size} bytes, too many")
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return []


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The weight file that `path` names, unpacked where it is in a zip.

    Raises:
      UserError: the zip has several weight files, not the one that is named, or is damaged.
    """
    archive, member = member_of(path) or (path, "")
    names = [name for name in names_in(archive) if PurePosixPath(name).suffix in SUFFIXES]
    if not member and not names:
        yield path
        return
    found = [name for name in names if name == member or PurePosixPath(name).name == member]
    if not member and len(names) == 1:
        found = names
    if len(found) != 1:
        raise UserError(
            f"{archive} holds {', '.join(names[:8]) or 'no weight file'}"
            + (f", and not one {member}" if member else "")
            + f"; name one, as in {archive}/{PurePosixPath(names[0]).name if names else 'FILE'}"
        )
    with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory() as folder:
        if opened.getinfo(found[0]).file_size > MAX_EXPANSION * archive.stat().st_size:
            raise UserError(f"{archive} would expand {found[0]} far more than weights compress by")
        try:
            yield Path(opened.extract(found[0], folder))
        except (zipfile.BadZipFile, zlib.error, OSError) as error:
            raise UserError(f"{found[0]} of {archive} cannot be unpacked: {error}") from None
