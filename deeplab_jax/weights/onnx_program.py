"""A program of ONNX for photographs of one size, made by jax2onnx and run by onnxruntime.

Both and `onnx` are the extra `onnx`, imported where they are used.
"""

import importlib
import logging
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import UserError
from deeplab_jax.weights.export import Outputs

PACKAGES = ("jax2onnx", "onnx", "onnxruntime")


def convert(
    outputs: Outputs, size: tuple[int, int], *, channels: int = 3
) -> tuple[bytes, Callable[[Any], Any]]:
    """`outputs` as a program of one uint8 photograph "image" `[1, *size, channels]`, and what runs
    it in onnxruntime.

    Raises:
      UserError: a package is missing, or does not take the network.
    """
    jax2onnx, onnx, onnxruntime = map(_imported, PACKAGES)
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.uint8)
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)  # of plugins for other libraries
    try:
        with forms_of("plain"):
            model = jax2onnx.to_onnx(
                outputs, [image], input_names=["image"], output_names=["outputs"]
            )
        _pool_planes(model.graph, onnx.helper)
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
        first = made_by[before.input[0]]
        pads = window.get("pads", [0] * 8)
        of_planes = {name: window[name][1:3] for name in ("kernel_shape", "strides")}
        _become(before, helper, "Transpose", first.input[0], perm=(0, 3, 1, 2))
        _become(pool, helper, "MaxPool", pool.input[0], **of_planes, pads=[*pads[1:3], *pads[5:7]])
        _become(after, helper, "Transpose", pool.output[0], perm=(0, 2, 3, 1))
        graph.node.remove(first)
    del graph.value_info[:]  # the shapes between those nodes
    read = {name for node in graph.node for name in node.input}
    for constant in [c for c in graph.initializer if c.name not in read]:
        graph.initializer.remove(constant)


def _become(node: Any, helper: Any, kind: str, source: str, **attributes: Any) -> None:
    node.CopyFrom(helper.make_node(kind, [source], list(node.output), **attributes))


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f".onnx programs need {package}, which is not installed: pip install "
            "'deeplab_jax[onnx]'"
        ) from None


def versions() -> dict[str, str]:
    """Versions of the packages that made and ran a program."""
    return {name: metadata.version(name) for name in PACKAGES}
