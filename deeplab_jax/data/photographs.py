"""Photographs as people have them: turned by their EXIF orientation, grey, or with an alpha."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from deeplab_jax.types import Image, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def read(path: Path | str) -> Image:
    """RGB uint8 `[h, w, 3]`, upright; transparency is dropped.

    Raises:
      UserError: no such file, no photograph, damaged, or more than Pillow's limit of pixels.
    """
    try:
        with PILImage.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"there is no photograph {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a photograph that Pillow can read") from None
    except PILImage.DecompressionBombError:
        raise UserError(
            f"{path} has more than {2 * PILImage.MAX_IMAGE_PIXELS} pixels: cut it into parts"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def find(paths: Iterable[Path]) -> list[Path]:
    """The files named, and the photographs in the folders named, in order.

    Raises:
      UserError: a folder without photographs, or two files whose results would share a name.
    """
    found: list[Path] = []
    for path in paths:
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if path.is_dir()
            else [path]
        )
        if not inside:
            raise UserError(f"{path} holds no photographs ({', '.join(SUFFIXES)})")
        found += inside
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise UserError(
                f"{other} and {path} would be written under one name; predict them one by one"
            )
    return found
