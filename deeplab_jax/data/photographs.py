"""Photographs as people have them: turned by their EXIF orientation, grey, or with an alpha."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from deeplab_jax.data.listing import is_hidden, visible
from deeplab_jax.types import Image, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Whatever a file is called; of other formats Pillow runs programs, as Ghostscript for EPS."""

MAX_PIXELS = 2**27
"""Pictures that promise more are not decoded: 400 MB as RGB."""


def read(path: Path | str) -> Image:
    """RGB uint8 `[h, w, 3]`, upright; transparency is dropped.

    Raises:
      UserError: no such file, no photograph, damaged, or of more than MAX_PIXELS.
    """
    try:
        with PILImage.open(path, formats=FORMATS) as picture:
            refuse_bomb(picture)
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"there is no photograph {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a photograph that Pillow can read") from None
    except PILImage.DecompressionBombError:
        raise UserError(f"{path} has more than {MAX_PIXELS} pixels: cut it into parts") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def refuse_bomb(picture: PILImage.Image) -> None:
    """Raises Pillow's own error, which it keeps for twice as many, before anything is decoded."""
    if picture.width * picture.height > MAX_PIXELS:
        raise PILImage.DecompressionBombError


def find(paths: Iterable[Path]) -> list[Path]:
    """The files named, and the photographs in the folders named, in order; no hidden ones.

    Raises:
      UserError: no photographs, in all or in one of the folders, or two files whose results would
        share a name.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found += [path] if not is_hidden(path.name) else []
            continue
        inside = [p for p in visible(path.iterdir()) if p.suffix.lower() in SUFFIXES]
        if not inside:
            raise UserError(f"{path} holds no photographs ({', '.join(SUFFIXES)})")
        found += inside
    if not found:
        raise UserError("there is no photograph to predict: name photographs, or folders of them")
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise UserError(
                f"{other} and {path} would be written under one name; predict them one by one"
            )
    return found
