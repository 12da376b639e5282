"""Arrays by `layer/role`, such as conv1_conv/kernel, of the files that Keras writes.

Three layouts are read: HDF5 of Keras 1 and 2, whose groups have the layers' names; `.weights.h5` of
Keras 3, whose groups are numbered by class (layers/conv2d_3/vars/0) and, in newer versions, hold
the layer's name as an attribute; and `.keras`, a zip of such a file beside config.json, which names
the layers where the groups do not.
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.types import UserError

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
"""Members of a .keras file."""

MAX_BYTES = 8 * 2**30
MAX_CONFIG_BYTES = 2**24

ROLES = {
    1: ("kernel",),
    2: ("kernel", "bias"),
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
}
"""Of a layer's arrays 0, 1, ..., by their number: a layer without bias, with one, batch norm."""

OLD_ROLES = {"W_1": "kernel", "b_1": "bias"}


def is_keras(path: Path) -> bool:
    """Whether a zip file is a .keras file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return WEIGHTS in archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        return False


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an HDF5 or a .keras file by `layer/role`.

    Raises:
      UserError: h5py is not installed, the file is damaged, or does not name its layers.
    """
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path} is an HDF5 file, which needs h5py: pip install h5py") from None
    try:
        file, names = (path, {}) if h5py.is_hdf5(path) else _members(path)
        with h5py.File(file, "r") as opened:
            if "layers" in opened:
                return _read_numbered(path, opened, names)
            return _read_named(opened)
    except UserError:
        raise
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a Keras file: {error}") from None


def _members(path: Path) -> tuple[io.BytesIO, dict[str, str]]:
    """The HDF5 file in a .keras file, and the layers' names by their groups in it."""
    with zipfile.ZipFile(path) as archive:
        sizes = {name: archive.getinfo(name).file_size for name in (WEIGHTS, CONFIG)}
        if sizes[WEIGHTS] > MAX_BYTES or sizes[CONFIG] > MAX_CONFIG_BYTES:
            raise UserError(f"{path} would expand to {max(sizes.values())} bytes")
        config = json.loads(archive.read(CONFIG))
        return io.BytesIO(archive.read(WEIGHTS)), dict(_layer_names(config))


def _layer_names(config: Any, folder: str = "") -> list[tuple[str, str]]:
    """(group, name) of each layer of a model's config, those of models inside it too.

    A group is called by the layer's class in snake case, with a number from the second on.
    """
    found, used = [], {}
    layers = config.get("config", {}).get("layers", []) if isinstance(config, Mapping) else []
    for layer in layers:
        kind = snake_case(layer["class_name"])
        number = used[kind] = used.get(kind, -1) + 1
        group = f"{folder}layers/{kind}" + (f"_{number}" if number else "")
        found.append((group, str(layer["config"]["name"])))
        found += _layer_names(layer, f"{group}/")
    return found


def snake_case(name: str) -> str:
    """Keras' spelling of a class in its groups.

    >>> snake_case("BatchNormalization"), snake_case("Conv2D"), snake_case("InputLayer")
    ('batch_normalization', 'conv2d', 'input_layer')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _read_numbered(path: Path, file: Any, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Keras 3: the arrays of a layer are 0, 1, ... in the group `vars` of its own."""
    groups: dict[str, dict[int, np.ndarray]] = {}
    layers = dict(names)

    def take(name: str, item: Any) -> None:
        group, _, number = name.rpartition("/vars/")
        if not hasattr(item, "shape") or not group.startswith("layers/"):
            return  # a group, or an optimizer's
        if np.issubdtype(item.dtype, np.floating):
            groups.setdefault(group, {})[int(number)] = item[()]
            if "name" in item.parent.attrs:
                layers[group] = str(item.parent.attrs["name"])

    file.visititems(take)
    arrays: dict[str, np.ndarray] = {}
    for group, found in groups.items():
        if group not in layers:
            raise UserError(
                f"{path} does not name its layers, as older versions of Keras 3 did not: save the "
                "model as a .keras file instead"
            )
        for name, array in _with_roles(path, layers[group], found).items():
            if name in arrays:
                raise UserError(f"{path} holds {name} twice; each layer is expected once")
            arrays[name] = array
    return arrays


def _with_roles(path: Path, layer: str, found: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    roles = ROLES.get(len(found), ())
    if sorted(found) != list(range(len(roles))):
        raise UserError(
            f"{path}: layer {layer} has {len(found)} arrays; a convolution with 1 or 2, or a batch "
            "norm with 4, was expected"
        )
    return {f"{layer}/{role}": found[i] for i, role in enumerate(roles)}


def _read_named(file: Any) -> dict[str, np.ndarray]:
    """Keras 1 and 2: groups are layers, in `model_weights` where the whole model was saved."""
    arrays: dict[str, np.ndarray] = {}

    def take(name: str, item: Any) -> None:
        if hasattr(item, "shape"):
            arrays[old_name(name)] = item[()]

    file.get("model_weights", file).visititems(take)
    return arrays


def old_name(path: str) -> str:
    """`layer/role` of a data set, whose last part repeats the layer in older files.

    >>> old_name("block1_conv1/block1_conv1_W_1:0"), old_name("fc1/fc1/bias:0")
    ('block1_conv1/kernel', 'fc1/bias')
    """
    layer, last = path.split("/")[0], path.split("/")[-1].split(":")[0]
    role = last.removeprefix(f"{layer}_")
    return f"{layer}/{OLD_ROLES.get(role, role)}"
