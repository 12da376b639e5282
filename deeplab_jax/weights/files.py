"""Weights under our names in a safetensors file, and how given weights fill a network.

A weight's name is its path in the network, such as "trunk/res4_1/branch2a/kernel", whether it
is a parameter or, for a frozen batch norm, a constant. The header is JSON: `model` holds the
fields of DeepLabV2, `class_names` the classes in order.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import DTypeLike
from safetensors import SafetensorError
from safetensors.numpy import save_file

from deeplab_jax import storage
from deeplab_jax.models.deeplab import is_classifier, weight_name
from deeplab_jax.types import UserError

Flat = dict[str, np.ndarray]
Header = dict[str, Any]

HEADER = "deeplab_jax"
"""Key of the header among the metadata of a safetensors file."""
EXPORTED = "deeplab_jax_export"
"""Key of `model` and `class_names` in a file of ours with PyTorch names."""


class Refused(UserError):
    """Why a file is not read: the end of a sentence that begins with its path."""


def named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> leaf over all collections of `variables`; a name occurs in one only."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {weight_name(path[1:]): leaf for path, leaf in leaves}


def flatten(variables: Mapping[str, Any]) -> Flat:
    """`named` as NumPy arrays."""
    return {name: np.asarray(leaf) for name, leaf in named(variables).items()}


def fill(variables: Mapping[str, Any], given: Flat, *, fresh_head: bool = False) -> dict[str, Any]:
    """`variables` with every array replaced by the one of its name in `given`; see `check`.

    With `fresh_head` the last layer keeps its values, and so does all of VGG's head where `given`
    has none of it. A scale or shift is found whether batch norm is frozen or trained on either
    side.
    """
    check(variables, given, fresh_head=fresh_head)
    merged = named(variables) | (without_last_layer(given) if fresh_head else given)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.numpy.asarray(merged[weight_name(path[1:])], leaf.dtype), variables
    )


def check(variables: Mapping[str, Any], given: Flat, *, fresh_head: bool = False) -> None:
    """A UserError for weights that do not `fill` a network: arrays are left over on either side, or
    of another shape. `variables` may hold shapes alone."""
    wanted = named(variables)
    if fresh_head:
        wanted, given = without_last_layer(wanted), without_last_layer(given)
        if not has_head(given):
            wanted = {name: leaf for name, leaf in wanted.items() if not name.startswith("head/")}
    unused, missing = given.keys() - wanted.keys(), wanted.keys() - given.keys()
    others = unused | missing or {n for n in given if given[n].shape != wanted[n].shape}
    if not others:
        return
    name = min(unused or missing or others)
    if unused:
        what = f"hold {len(unused)} arrays the network has no place for, e.g. {name}"
    elif missing:
        what = f"lack {len(missing)} arrays of the network, e.g. {name}"
    else:
        what = f"have {name} of shape {given[name].shape}, and the network {wanted[name].shape}"
    of_head = all(map(is_classifier, others))
    advice = "give --fresh-head to start the last layer from scratch"
    raise UserError(f"the weights {what}; {advice if of_head else 'is it the same network?'}")


def without_last_layer(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays by name but those of the last layer, which is as wide as there are classes."""
    return {name: array for name, array in arrays.items() if not is_classifier(name)}


def has_head(given: Flat) -> bool:
    """Whether there is anything of the head under the last layer, as VGG's fc6 and fc7."""
    return any(name.startswith("head/") for name in without_last_layer(given))


def write(
    path: Path, variables: Mapping[str, Any], header: Header, *, dtype: DTypeLike = np.float32
) -> None:
    """Writes the file in one step: it is whole or it is not there, and that is a UserError.

    Arrays are written as `dtype`. `variables` may be nested, or {"": arrays by name}.
    """
    arrays = {n: np.ascontiguousarray(a, dtype) for n, a in flatten(variables).items()}
    save_arrays(path, arrays, {HEADER: json.dumps(header)})


def save_arrays(path: Path, arrays: Flat, metadata: Mapping[str, str]) -> None:
    """Writes contiguous arrays as `write` does."""
    with written_whole(path) as partial:
        save_file(arrays, partial, metadata=dict(metadata))


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` at the end, and is removed where writing fails."""
    check_place(path)
    try:
        with storage.written_whole(path, concurrent=True) as partial:
            yield partial
            partial.chmod(0o644)  # safetensors writes files that only their owner may read
    except SafetensorError as error:  # which names a file of the library's own
        reason = re.sub(r" at path .*", "", str(error))
        raise UserError(f"{path} cannot be written: {reason}") from None


def check_place(path: Path, *, source: Path | None = None) -> None:
    """A UserError for a file to write that is a folder, lies in none, or is the `source` read."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the name of the file to write")
    if not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be written: there is no folder {path.parent}; make it first"
        )
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{path} is the file to read from; give another name to write to")
