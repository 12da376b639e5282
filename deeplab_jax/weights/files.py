"""Weights under our names in a safetensors file, and how given weights fill a network.

A weight's name is its path in the network, such as "trunk/res4_1/branch2a/kernel", whether it
is a parameter or, for a frozen batch norm, a constant. The header is JSON: `model` holds the
fields of DeepLabV2, `class_names` the classes in order.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deeplab_jax import storage
from deeplab_jax.models.deeplab import is_classifier, weight_name
from deeplab_jax.types import UserError

Flat = dict[str, np.ndarray]

HEADER = "deeplab_jax"
"""Key of the header among the metadata of a safetensors file."""
EXPORTED = "deeplab_jax_export"
"""Key of `model` and `class_names` in a file of ours with PyTorch names."""

MAX_EXPANSION = 8
"""How many times as large as the file its arrays may be; weights hardly compress."""


def flatten(variables: Mapping[str, Any]) -> Flat:
    """Name -> array over all collections of `variables`; a name occurs in one only."""
    return {
        weight_name(path): np.asarray(leaf)
        for collection in variables.values()
        for path, leaf in jax.tree_util.tree_leaves_with_path(collection)
    }


def fill(variables: Mapping[str, Any], given: Flat, *, fresh_head: bool = False) -> dict[str, Any]:
    """`variables` with every array replaced by the one of its name in `given`.

    With `fresh_head` the last layer keeps its values, and so does all of VGG's head where `given`
    has none of it. A scale or shift is found whether batch norm is frozen or trained on either
    side.

    Raises:
      UserError: arrays left over on either side, or of another shape.
    """
    check(variables, given, fresh_head=fresh_head)
    if fresh_head:
        given = {name: a for name, a in given.items() if not is_classifier(name)}
    merged = {**flatten(variables), **given}
    return {
        key: jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.numpy.asarray(merged[weight_name(path)], leaf.dtype), collection
        )
        for key, collection in variables.items()
    }


def check(variables: Mapping[str, Any], given: Flat, *, fresh_head: bool = False) -> None:
    """Refuses weights that do not fill a network; `variables` may hold shapes alone.

    Raises:
      UserError: arrays left over on either side, or of another shape.
    """
    shapes = {
        weight_name(path): leaf.shape
        for collection in variables.values()
        for path, leaf in jax.tree_util.tree_leaves_with_path(collection)
    }
    whole_head = fresh_head and not has_head(given)
    free = {n for n in shapes if fresh_head and is_classifier(n) or whole_head and _in_head(n)}
    given = {name: a for name, a in given.items() if not (fresh_head and is_classifier(name))}
    _refuse_leftovers(set(given) - set(shapes), set(shapes) - set(given) - free)
    for name, array in given.items():
        if array.shape != shapes[name]:
            advice = "; give --fresh-head to start it from scratch" if is_classifier(name) else ""
            raise UserError(
                f"{name} has shape {array.shape} in the weights and {shapes[name]} in the "
                f"network{advice}"
            )


def has_head(given: Flat) -> bool:
    """Whether there is anything of the head under the last layer, as VGG's fc6 and fc7."""
    return any(_in_head(name) and not is_classifier(name) for name in given)


def _in_head(name: str) -> bool:
    return name.startswith("head/")


def write(
    path: Path,
    variables: Mapping[str, Any],
    header: Mapping[str, Any],
    *,
    dtype: np.typing.DTypeLike = np.float32,
) -> None:
    """Writes the file in one step: it is whole or it is not there.

    Arrays are written as `dtype`. `variables` may be nested, or {"": arrays by name}.

    Raises:
      UserError: the file cannot be written.
    """
    arrays = {n: np.ascontiguousarray(a, dtype) for n, a in flatten(variables).items()}
    save_arrays(path, arrays, {HEADER: json.dumps(header)})


def save_arrays(path: Path, arrays: Flat, metadata: Mapping[str, str]) -> None:
    """A safetensors file of contiguous arrays, written whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    with written_whole(path) as partial:
        save_file(arrays, partial, metadata=dict(metadata))


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` at the end, and is removed where writing fails.

    Raises:
      UserError: the file cannot be written.
    """
    check_place(path)
    try:
        with storage.written_whole(path, concurrent=True) as partial:
            yield partial
            partial.chmod(0o644)  # safetensors writes files that only their owner may read
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    except SafetensorError as error:
        reason = re.sub(r" at path .*", "", str(error))  # names a file of the library's own
        raise UserError(f"{path} cannot be written: {reason}") from None


def check_place(path: Path, *, source: Path | None = None) -> None:
    """Refuses a file to write that is a folder, lies in none, or is the `source` read from.

    Raises:
      UserError
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of the file to write")
    if not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be written: there is no folder {path.parent}; make it first"
        )
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{path} is the file to read from; give another name to write to")


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its arrays; empty for any other file."""
    try:
        with open(path, "rb") as file:
            if file.read(9)[8:] != b"{":
                return {}
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def exported(metadata: Mapping[str, str]) -> dict[str, Any]:
    """`model`, `class_names` and `bands` of a safetensors file that export wrote; else empty."""
    return json.loads(metadata.get(EXPORTED, "{}"))


def read(path: Path) -> tuple[Flat, dict[str, Any]]:
    """Arrays by name, float32 where they are stored in 16 bits, and the header.

    Raises:
      UserError: not a file that `write` made.
    """
    arrays = read_safetensors(path)
    header = metadata(path).get(HEADER)
    if header is None:
        raise UserError(f"{path} was not written by deeplab_jax: it has no header of ours")
    return {name: a.astype(np.float32, copy=False) for name, a in arrays.items()}, json.loads(
        header
    )


def read_safetensors(path: Path) -> Flat:
    """All arrays of a safetensors file by their names.

    Raises:
      UserError: the file is damaged, or holds a type that NumPy lacks.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file: {error}") from None


def read_npz(path: Path) -> Flat:
    """All arrays of an .npz file by their names.

    Raises:
      UserError: the file is damaged, or expands far more than weights do.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_EXPANSION * path.stat().st_size:
            raise UserError(
                f"{path} would expand to {size} bytes, far more than weights compress by"
            )
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as an .npz file: {error}") from None


def _refuse_leftovers(unused: set[str], missing: set[str]) -> None:
    of_head = all(map(is_classifier, unused | missing))
    advice = "give --fresh-head to start the last layer from scratch"
    advice = advice if of_head else "is it the same network?"
    if unused:
        raise UserError(
            f"the weights hold {len(unused)} arrays the network has no place for, e.g. "
            f"{min(unused)}; {advice}"
        )
    if missing:
        raise UserError(
            f"the weights lack {len(missing)} arrays of the network, e.g. {min(missing)}; {advice}"
        )
