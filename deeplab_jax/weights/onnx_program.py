"""A program of ONNX for photographs of one size: jax2onnx makes it, onnxruntime runs it."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import UserError
from deeplab_jax.weights.export import Outputs


def convert(
    outputs: Outputs, size: tuple[int, int], *, channels: int = 3
) -> tuple[bytes, Callable[[Any], Any]]:
    """`outputs` as a program of one uint8 photograph "image" `[1, *size, channels]`, and what runs
    it in onnxruntime.

    Raises:
      UserError: a package of the extra `onnx` is missing, or does not take the network.
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
