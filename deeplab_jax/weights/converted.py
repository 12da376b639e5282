"""Programs for other runtimes: ONNX by jax2onnx, TFLite by TensorFlow.

Both take one uint8 RGB photograph `[1, h, w, 3]` of one size, weights inside. Converters and
runtimes are the extras `onnx` and `tflite`, imported where they are used.
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

Run = Callable[[Any], Any]
"""A program in its own runtime, called as `Outputs` with an array of NumPy."""


def to_onnx(outputs: Outputs, size: tuple[int, int]) -> bytes:
    """`outputs` as an ONNX model with the input "image" and the output "outputs"."""
    import jax2onnx  # pyright: ignore[reportMissingImports]
    import onnx  # pyright: ignore[reportMissingImports]

    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    model = jax2onnx.to_onnx(outputs, [image], input_names=["image"], output_names=["outputs"])
    _pool_planes(model.graph)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _pool_planes(graph: Any) -> None:
    """Replaces jax2onnx's max pools, which onnxruntime cannot run, by pools over rows and columns.

    jax2onnx gives a window (1, k, k, 1) over an array [1, 1, b, h, w, c]: Unsqueeze twice, MaxPool
    over four axes, Squeeze.
    """
    from onnx import helper  # pyright: ignore[reportMissingImports]

    made_by = {name: node for node in graph.node for name in node.output}
    read_by = {name: node for node in graph.node for name in node.input}
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        window = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
        if len(window["kernel_shape"]) != 4:
            continue
        second = made_by[pool.input[0]]
        first, last = made_by[second.input[0]], read_by[pool.output[0]]
        pads = window.get("pads", [0] * 8)
        of_planes = {
            "kernel_shape": window["kernel_shape"][1:3],
            "strides": window["strides"][1:3],
            "pads": [*pads[1:3], *pads[5:7]],
        }
        planes, pooled = f"{pool.name}_planes", f"{pool.name}_pooled"
        position = list(graph.node).index(last)
        for node in (
            helper.make_node("Transpose", [pooled], [last.output[0]], perm=(0, 2, 3, 1)),
            helper.make_node("MaxPool", [planes], [pooled], **of_planes),
            helper.make_node("Transpose", [first.input[0]], [planes], perm=(0, 3, 1, 2)),
        ):
            graph.node.insert(position, node)
        for node in (first, second, pool, last):
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for constant in [c for c in graph.initializer if c.name not in read]:
        graph.initializer.remove(constant)


def run_onnx(program: bytes) -> Run:
    """An ONNX program in onnxruntime."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": np.asarray(image)})[0]


def to_tflite(outputs: Outputs, size: tuple[int, int]) -> bytes:
    """`outputs` as a TFLite program of one input and one output."""
    import tensorflow  # pyright: ignore[reportMissingImports]
    from jax.experimental import jax2tf

    image = tensorflow.TensorSpec((1, *size, 3), tensorflow.uint8, name="image")
    converted = jax2tf.convert(
        outputs, native_serialization_platforms=("cpu",), with_gradient=False
    )
    function = tensorflow.function(converted, input_signature=[image], autograph=False)
    converter = tensorflow.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], function
    )
    return bytes(converter.convert())


def run_tflite(program: bytes) -> Run:
    """A TFLite program in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    interpreter = Interpreter(model_content=program)
    interpreter.allocate_tensors()
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(image):
        interpreter.set_tensor(given["index"], np.asarray(image))
        interpreter.invoke()
        return interpreter.get_tensor(found["index"])

    return run


FORMATS = {
    ".onnx": (to_onnx, run_onnx, ("jax2onnx", "onnx", "onnxruntime")),
    ".tflite": (to_tflite, run_tflite, ("tensorflow", "ai_edge_litert")),
}
"""Of each file ending: converter, runtime, and the packages that they come from."""


def convert(kind: str, outputs: Outputs, size: tuple[int, int]) -> tuple[bytes, Run]:
    """The program for one photograph of `size` (rows, columns), and the program in its runtime.

    Raises:
      UserError: a package is missing, or converter or runtime do not take the network.
    """
    make, run, packages = FORMATS[kind]
    import_packages(kind)
    try:
        with forms_of("plain"):
            program = make(outputs, size)
        started = run(program)
        started(np.zeros((1, *size, 3), np.uint8))
    except Exception as error:  # converters and runtimes raise errors of any class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"this network cannot become a {kind} program, because {packages[0]} or {packages[-1]} "
            f"says: {reason}; write .stablehlo or .safetensors instead"
        ) from error
    return program, started


def import_packages(kind: str) -> None:
    """Imports converter and runtime of a format, which takes seconds.

    Raises:
      UserError: one is not installed.
    """
    logging.getLogger("jax2onnx").setLevel(logging.CRITICAL)  # of plugins for other libraries
    for package in FORMATS[kind][2]:
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"{kind} programs need {package}, which is not installed: "
                f"pip install 'deeplab_jax[{kind[1:]}]'"
            ) from None


def versions(kind: str) -> dict[str, str]:
    """Versions of the packages that made and ran a program."""
    distributions = metadata.packages_distributions()
    return {name: metadata.version(distributions[name][0]) for name in FORMATS[kind][2]}
