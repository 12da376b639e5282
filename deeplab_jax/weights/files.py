"""Weights under our names in a safetensors file, and how given weights fill a network.

A weight's name is its path in the network, such as "trunk/res4_1/branch2a/kernel", whether it
is a parameter or, for a frozen batch norm, a constant. The header is JSON: `model` holds the
fields of DeepLabV2, `class_names` the classes in order.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deeplab_jax.types import UserError

Flat = dict[str, np.ndarray]


def flatten(variables: Mapping[str, Any]) -> Flat:
    """Name -> array over all collections of `variables`; a name occurs in one only."""
    return {
        _name(path): np.asarray(leaf)
        for collection in variables.values()
        for path, leaf in jax.tree_util.tree_leaves_with_path(collection)
    }


def fill(variables: Mapping[str, Any], given: Flat, *, fresh_head: bool = False) -> dict[str, Any]:
    """`variables` with every array replaced by the one of its name in `given`.

    With `fresh_head` the last layer keeps its values where the shapes differ. A scale or shift
    finds its place whether batch norm is frozen or trained on either side.

    Raises:
      UserError: arrays left over on either side, or of another shape.
    """
    target = flatten(variables)
    if fresh_head:
        given = {name: a for name, a in given.items() if not is_classifier(name)}
    kept = {name for name in target if fresh_head and is_classifier(name)}
    _refuse_leftovers(set(given) - set(target), set(target) - set(given) - kept)
    for name, array in given.items():
        if array.shape != target[name].shape:
            advice = "; give --fresh-head to start it from scratch" if is_classifier(name) else ""
            raise UserError(
                f"{name} has shape {array.shape} in the weights and {target[name].shape} in the "
                f"network{advice}"
            )
    merged = {**target, **given}
    return {
        key: jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.numpy.asarray(merged[_name(path)], leaf.dtype), collection
        )
        for key, collection in variables.items()
    }


def is_classifier(name: str) -> bool:
    """Whether a weight belongs to the last layer, the one whose size is the number of classes."""
    return "/fc8_" in name


def write(path: Path, variables: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Writes the file in one step: it is whole or it is not there."""
    partial = path.with_suffix(path.suffix + ".partial")
    save_file(flatten(variables), partial, metadata={"deeplab_jax": json.dumps(header)})
    partial.replace(path)


def read(path: Path) -> tuple[Flat, dict[str, Any]]:
    """Arrays by name, and the header.

    Raises:
      UserError: not a file that `write` made.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("deeplab_jax")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file: {error}") from None
    if header is None:
        raise UserError(f"{path} was not written by deeplab_jax: it has no header of ours")
    return arrays, json.loads(header)


def _refuse_leftovers(unused: set[str], missing: set[str]) -> None:
    if unused:
        raise UserError(
            f"the weights hold {len(unused)} arrays the network has no place for, e.g. "
            f"{min(unused)}; is it the same network?"
        )
    if missing:
        raise UserError(
            f"the weights lack {len(missing)} arrays of the network, e.g. {min(missing)}; "
            "is it the same network?"
        )


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
