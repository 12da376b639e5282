"""Our weights for others: a safetensors file with PyTorch names, a program of StableHLO or ONNX.

The safetensors file has the names of kazuto1011/deeplab-pytorch or torchvision, kernels
`[o, i, h, w]`, and as metadata what the network expects of its input.
"""

import datetime
import json
import logging
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


def write_torch(path: Path, flat: Flat, header: Mapping[str, Any], *, names: Names) -> None:
    """Writes the arrays under PyTorch names, those of `num_batches_tracked` among them.

    The metadata say how inputs are made and what the classes are. A UserError where the network has
    layers that these names do not know, or the file cannot be written.
    """
    model = header["model"]
    rows = tables.KAZUTO_MSC if names == "kazuto" else tables.TORCH_DEEPLAB
    if model["backbone"] == "vgg":
        rows = tables.TORCH_VGG_ASPP
    table = tables.expand(rows, model["stage_sizes"], len(model["aspp_rates"]))
    if strangers := flat.keys() ^ set(table.values()):
        raise UserError(
            f"{min(strangers)} has no name in PyTorch's {names} convention; a ResNet, or a VGG "
            "without batch norm, was expected"
        )
    arrays = {}
    for name, ours in table.items():
        array = flat[ours].transpose(3, 2, 0, 1) if ours.endswith("/kernel") else flat[ours]
        arrays[name] = np.ascontiguousarray(array, np.float32)
        if name.endswith(".running_mean"):
            counter = name.replace("running_mean", "num_batches_tracked")
            arrays[counter] = np.zeros((), np.int64)
    mean = ", ".join(map(str, model["mean_bgr"]))
    order = "BGR" if len(model["mean_bgr"]) == 3 else "channels in the order of the files"
    told = {name: header[name] for name in ("model", "class_names", "bands") if name in header}
    inputs = f"{order} in 0..255 less ({mean}), NCHW"
    files.save_arrays(path, arrays, {"inputs": inputs, files.EXPORTED: json.dumps(told)})


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

Outputs = Callable[[UInt8[Array, "b h w channels"]], Shaped[jax.Array, "b h w ..."]]


def program(
    outputs: Outputs,
    *,
    size: tuple[int, int] | None = None,
    step: int = 1,
    rest: int = 1,
    channels: int = 3,
) -> bytes:
    """`outputs` as a serialised StableHLO program, for one photograph of `size` or for any batch.

    With a `size` (rows, columns) all shapes are static, and the one argument is the photograph,
    which compilers for other runtimes want: a program for several platforms has the platform's
    number as another. It has no operation of a certain platform, so JAX runs it on any.

    Without one, batch, height and width are symbolic: with `step` 1 any size is taken, with 8 or 32
    sizes `step` * k + `rest`. A UserError where `outputs` cannot be traced without knowing them.
    """
    rows, columns = ("h", "w") if step == 1 else (f"{step}*h + {rest}", f"{step}*w + {rest}")
    shape = export.symbolic_shape(f"b, {rows}, {columns}, {channels}")
    image = jax.ShapeDtypeStruct((1, *size, channels) if size else shape, jnp.uint8)
    platforms = ("cpu",) if size else PLATFORMS
    unchecked = [export.DisabledSafetyCheck.platform()] if size else []
    try:
        with forms_of("plain"):  # one program for every platform
            traced = export.export(jax.jit(outputs), platforms=platforms, disabled_checks=unchecked)
            return bytes(traced(image).serialize())
    except (jax.errors.InconclusiveDimensionOperation, jax.errors.JAXTypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the network cannot be exported for sizes {rows} x {columns}: {reason}; train it with "
            "model.scales 1.0 or another alignment"
        ) from None


def loaded(serialised: bytes) -> Outputs:
    """A serialised StableHLO program as a function."""
    return jax.jit(export.deserialize(bytearray(serialised)).call)


def onnx_program(
    outputs: Outputs, size: tuple[int, int], *, channels: int = 3
) -> tuple[bytes, Callable[[Any], Any]]:
    """`outputs` as a program of one uint8 photograph "image" `[1, *size, channels]`, and what runs
    it in onnxruntime. A UserError where a package of the extra `onnx` is missing, or does not take
    the network.
    """
    try:
        import jax2onnx  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
        from onnx import helper  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f".onnx programs need {error.name}, which is not installed: pip install "
            "'deeplab_jax[onnx]'"
        ) from None
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.uint8)
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)  # of plugins for other libraries
    names = {"input_names": ["image"], "output_names": ["outputs"]}
    try:
        with forms_of("plain"):
            model = jax2onnx.to_onnx(outputs, [image], **names)
        _pool_planes(model.graph, helper)
        program = model.SerializeToString()
        session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
        session.run(None, {"image": np.zeros(image.shape, np.uint8)})
    except Exception as error:  # converter and runtime raise errors of any class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"this network cannot become an ONNX program, because jax2onnx or onnxruntime says: "
            f"{reason}; write .stablehlo or .safetensors instead"
        ) from error
    return program, lambda image: session.run(None, {"image": np.asarray(image)})[0]


def _pool_planes(graph: Any, helper: Any) -> None:
    """Makes jax2onnx's max pools, which onnxruntime cannot run, pools over rows and columns.

    jax2onnx gives a window (1, k, k, 1) over an array [1, 1, b, h, w, c]: Unsqueeze twice, MaxPool
    over four axes, Squeeze.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    read_by = {name: node for node in graph.node for name in node.input}
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        window = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
        before, after = made_by[pool.input[0]], read_by[pool.output[0]]
        first, pads = made_by[before.input[0]], window.get("pads", [0] * 8)
        planes: dict[str, Any] = {name: window[name][1:3] for name in ("kernel_shape", "strides")}
        planes["pads"] = [*pads[1:3], *pads[5:7]]
        for node, kind, source, attributes in (
            (before, "Transpose", first.input[0], {"perm": (0, 3, 1, 2)}),
            (pool, "MaxPool", pool.input[0], planes),
            (after, "Transpose", pool.output[0], {"perm": (0, 2, 3, 1)}),
        ):
            node.CopyFrom(helper.make_node(kind, [source], list(node.output), **attributes))
        graph.node.remove(first)
    del graph.value_info[:]  # the shapes between those nodes
    read = {name for node in graph.node for name in node.input}
    for constant in [c for c in graph.initializer if c.name not in read]:
        graph.initializer.remove(constant)


def check_program(
    run: Callable[[Any], Any],
    probs: Outputs,
    sizes: tuple[tuple[int, int, int], ...],
    *,
    channels: int = 3,
) -> float:
    """Largest difference of a program from the model's `probs` at (batch, rows, columns) `sizes`.

    `run` is the program in its runtime. Of a program that gives labels: by how much a label is
    less probable than the best. A UserError where it exceeds TOLERANCE.
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
        worst = float(np.maximum(worst, difference.max()))  # NaN stays NaN
    if not worst <= TOLERANCE:
        raise UserError(
            f"the exported program differs from the model by {worst:.2g}, and at most {TOLERANCE} "
            "was expected; nothing is written, please report it"
        )
    return worst
