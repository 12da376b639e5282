"""Our weights for others: a safetensors file with PyTorch names, and a program of StableHLO.

The safetensors file has the names of kazuto1011/deeplab-pytorch or torchvision, kernels
`[o, i, h, w]`, and as metadata what the network expects of its input.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Shaped, UInt8

from deeplab_jax.choices import WeightNames as Names
from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import Array, UserError
from deeplab_jax.weights import files, tables
from deeplab_jax.weights.files import Flat

PLATFORMS = ("cpu", "cuda", "tpu")

TOLERANCE = 1e-4
"""Largest difference of the exported program's output from the model's."""


def torch_arrays(flat: Flat, model: Mapping[str, Any], *, names: Names) -> Flat:
    """Arrays under PyTorch names, those of `num_batches_tracked` among them.

    Raises:
      UserError: the network has layers that these names do not know.
    """
    table = _table(model, names)
    strangers = flat.keys() ^ {place.name for place in table.values()}
    if strangers:
        raise UserError(
            f"{min(strangers)} has no name in PyTorch's {names} convention; a ResNet, or a VGG "
            "without batch norm, was expected"
        )
    arrays = {name: _to_torch(flat[place.name], place) for name, place in table.items()}
    counters = [name for name in arrays if name.endswith(".running_mean")]
    return arrays | {
        name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for name in counters
    }


def _table(model: Mapping[str, Any], names: Names) -> tables.Table:
    branches = range(len(model["aspp_rates"]))
    if model["backbone"] == "vgg":
        return tables.torch_vgg_deeplab({f"fc8_{i + 1}.": () for i in branches})
    blocks = [(s, b) for s, n in enumerate(model["stage_sizes"], 2) for b in range(1, n + 1)]
    if names == "kazuto":
        present = [f"layer{s}.block{b}." for s, b in blocks] + [f"aspp.c{i}." for i in branches]
        return tables.kazuto(dict.fromkeys(present, ()))
    present = [f"layer{s - 1}.{b - 1}." for s, b in blocks]
    present += [f"layer5.conv2d_list.{i}." for i in branches]
    return tables.torch_deeplab(dict.fromkeys(present, ()))


def _to_torch(array: np.ndarray, place: tables.Place) -> np.ndarray:
    array = np.asarray(array, np.float32)
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if place.order == "oihw" else array)


def description(path: Path) -> Path:
    """The JSON file that stands beside a program."""
    return path.with_name(f"{path.name}.json")


def describe(
    header: Mapping[str, Any], *, palette: UInt8[np.ndarray, "n 3"], version: str, **program: Any
) -> dict[str, Any]:
    """What a program's user needs besides the program; `program` is what it takes and gives."""
    names = list(header["class_names"])
    return {
        **program,
        "class_names": names,
        "palette_rgb": palette[: len(names)].tolist(),
        "mean_bgr_inside": list(header["model"]["mean_bgr"]),
        **({"bands": header["bands"]} if "bands" in header else {}),
        "source": header.get("source"),
        "exported_on": datetime.date.today().isoformat(),
        "versions": {"deeplab_jax": version, "jax": jax.__version__},
    }


LASTS = (
    "jax.export promises to read this for six months from the date; keep the weights as "
    "safetensors for longer"
)
"""What the description of a StableHLO program says of its date."""


def write_torch(path: Path, flat: Flat, header: Mapping[str, Any], *, names: Names) -> None:
    """Writes the safetensors file; its metadata say how inputs are made and what the classes are.

    Raises:
      UserError
    """
    model = header["model"]
    prefix = "base." if names == "kazuto" and model["backbone"] == "resnet" else ""
    arrays = torch_arrays(flat, model, names=names)
    mean = ", ".join(map(str, model["mean_bgr"]))
    order = "BGR" if len(model["mean_bgr"]) == 3 else "channels in the order of the files"
    told = {name: header[name] for name in ("model", "class_names", "bands") if name in header}
    metadata = {
        "inputs": f"{order} in 0..255 less ({mean}), NCHW",
        files.EXPORTED: json.dumps(told),
    }
    files.save_arrays(path, {prefix + name: array for name, array in arrays.items()}, metadata)


Outputs = Callable[[UInt8[Array, "b h w channels"]], Shaped[jax.Array, "b h w ..."]]


def fixed_program(outputs: Outputs, size: tuple[int, int], *, channels: int = 3) -> bytes:
    """`outputs` as a serialised StableHLO program for one photograph of `size` (rows, columns).

    All shapes in it are static, and its one argument is the photograph, which compilers for other
    runtimes want: a program for several platforms has the platform's number as another argument.
    It has no operation of a certain platform, so JAX runs it on any.
    """
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.uint8)
    anywhere = [export.DisabledSafetyCheck.platform()]
    with forms_of("plain"):
        exported = export.export(jax.jit(outputs), platforms=("cpu",), disabled_checks=anywhere)
        return bytes(exported(image).serialize())


def program(outputs: Outputs, *, step: int, rest: int = 1, channels: int = 3) -> bytes:
    """`outputs` as a serialised StableHLO program with symbolic batch, height and width.

    With `step` 1 any size is taken, with 8 or 32 sizes `step` * k + `rest`.

    Raises:
      UserError: `outputs` cannot be traced without knowing the sizes.
    """
    rows, columns = ("h", "w") if step == 1 else (f"{step}*h + {rest}", f"{step}*w + {rest}")
    shape = export.symbolic_shape(f"b, {rows}, {columns}, {channels}")
    image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    try:
        with forms_of("plain"):  # one program for every platform
            exported = export.export(jax.jit(outputs), platforms=PLATFORMS)(image)
    except (jax.errors.InconclusiveDimensionOperation, jax.errors.JAXTypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the network cannot be exported for sizes {rows} x {columns}: {reason}; train it with "
            "model.scales 1.0 or another alignment"
        ) from None
    return bytes(exported.serialize())


<<<<<<< HEAD
def check_program(
    serialised: bytes,
    probs: Outputs,
    sizes: tuple[tuple[int, int, int], ...],
    *,
    channels: int = 3,
) -> float:
    """Largest difference of the program from the model's `probs` at (batch, rows, columns) `sizes`.
=======
def loaded(serialised: bytes) -> Outputs:
    """A serialised StableHLO program as a function."""
    return jax.jit(export.deserialize(bytearray(serialised)).call)
>>>>>>> exports


def check_program(
    run: Callable[[Any], Any], probs: Outputs, sizes: tuple[tuple[int, int, int], ...]
) -> float:
    """Largest difference of a program from the model's `probs` at (batch, rows, columns) `sizes`.

    `run` is the program in its runtime. Of a program that gives labels: by how much a label is
    less probable than the best.

    Raises:
      UserError: it exceeds TOLERANCE.
    """
    worst = 0.0
    for i, size in enumerate(sizes):
        image = np.random.default_rng(i).integers(0, 256, (*size, channels), np.uint8)
        found, wanted = np.asarray(run(image)), np.asarray(probs(image))
        if found.dtype == np.uint8:
            of_label = np.take_along_axis(wanted, found[..., None].astype(int), -1)
            difference = wanted.max(-1, keepdims=True) - of_label
        else:
            difference = np.abs(found - wanted)
        worst = max(worst, float(difference.max()))
    if not worst <= TOLERANCE:
        raise UserError(
            f"the exported program differs from the model by {worst:.2g}, and at most {TOLERANCE} "
            "was expected; nothing is written, please report it"
        )
    return worst
