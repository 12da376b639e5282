"""Arrays by the names in .npz and .safetensors files that others wrote."""

import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from deeplab_jax.renamed import answering
from deeplab_jax.types import UserError
from deeplab_jax.weights.files import EXPORTED

MAX_EXPANSION = 8
"""How many times as large as the file its arrays may be; weights hardly compress."""


def is_npz(path: Path) -> bool:
    """Whether a zip file holds NumPy's arrays."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by their names.

    Raises:
      UserError: the file is damaged, or expands far more than weights do.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_EXPANSION * path.stat().st_size:
        raise UserError(f"{path} would expand to {size} bytes, far more than weights compress by")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz file: {error}") from None


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file by their names.

    Raises:
      UserError: the file is damaged, or holds a type that NumPy lacks.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file: {error}") from None


def told(path: Path) -> dict[str, Any]:
    """`model`, `class_names` and `bands` of a safetensors file that export wrote; else empty."""
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get(EXPORTED, "{}"))
    except (OSError, SafetensorError):
        return {}


if not TYPE_CHECKING:  # an editor is to mark the old names
    __getattr__ = answering(__name__, {"read_keras": "weights.keras.read"})
