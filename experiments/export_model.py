"""Export a trained network: for PyTorch by its weights, or as a program that needs no code of ours.

    python experiments/export_model.py runs/small small.safetensors
    python experiments/export_model.py runs/small small.stablehlo --outputs labels
    python experiments/export_model.py runs/small refined.stablehlo --crf --size 360 480
    python experiments/export_model.py runs/small small.onnx --outputs labels --size 513 513

DEST ending in .safetensors gets the weights under the names of kazuto1011/deeplab-pytorch (or
--names torchvision). Others get a program from uint8 RGB photographs `[b, h, w, 3]`, or of as many
channels as the run has, to probabilities or labels of the same size, weights inside:

.onnx      one photograph of one --size, for onnxruntime (pip install 'deeplab_jax[onnx]')
any other  StableHLO. Batch, height and width are free (32k + 1 with multi-scale inputs, 8k + 1
           with aligned corners), or fixed by --size, which compilers other than JAX's need. With
           --crf it ends in the labels of the CRF, of one photograph of one --size.

The program is run first in its own runtime, at three sizes where they are free, and not written
where it differs from the network by more than 1e-4. Class names, their colours, the mean pixel,
versions and the date stand beside it in DEST.json, for a run with --data.channels the range too.
deeplab_jax/weights/README.md shows how to serve each: a photograph in, a PNG of class ids out.
"""

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import cli
import jax
import jax.numpy as jnp
import tyro

import deeplab_jax
from deeplab_jax import crf, segmenter, visualization
from deeplab_jax.choices import CRFNormalization, WeightNames, What
from deeplab_jax.models.deeplab import OUTPUT_STRIDE, DeepLabV2, make_inputs
from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import UserError
from deeplab_jax.weights import export, files


@dataclass(frozen=True)
class Options(cli.SourceOptions):
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, a weight file, or a name of published weights such as voc12."""
    dest: Annotated[Path, tyro.conf.Positional]
    """The file to write."""
    outputs: What | None = None
    """What the program gives of each pixel; None: probs, and labels with --crf."""
    size: tuple[int, int] | None = None
    """Rows and columns of the one photograph that the program takes; any sizes where none is
    given."""
    crf: bool = False
    """End the program in the fully connected CRF."""
    crf_params: str | None = None
    """As in predict.py: a file that search_crf.py left, or the name of published parameters."""
    crf_normalization: CRFNormalization = "symmetric"
    """As in predict.py."""
    names: WeightNames = "kazuto"
    """Names of a ResNet's weights for PyTorch."""


NOT_WRITTEN = set(".pt .pth .pkl .npz .h5 .keras .caffemodel .pb .mlmodel .tflite".split())
"""Endings of other formats than StableHLO."""


def main(options: Options) -> None:
    files.check_place(options.dest, source=options.source)
    cli.check_positive(size=min(options.size or (1,)))
    kind = options.dest.suffix.lower()
    if kind in NOT_WRITTEN:
        raise UserError(
            f"{kind} files are not written; give a name that ends in .safetensors for weights, or "
            ".onnx or .stablehlo for a program"
        )
    if options.crf and kind in (".onnx", ".safetensors"):
        raise UserError(f"a {kind} file cannot hold the CRF; give a name that ends in .stablehlo")
    if (options.crf or kind == ".onnx") and options.size is None:
        raise UserError(
            f"a program {'with the CRF' if options.crf else 'of ONNX'} takes photographs of one "
            "size: give --size ROWS COLUMNS, such as --size 513 513"
        )
    (model, variables, header), config = options.load(options.source)
    if kind == ".safetensors":
        flat = files.flatten(variables)
        export.write_torch(options.dest, flat, header, names=options.names)
        print(f"{options.dest} holds {len(flat)} arrays under the names of {options.names}")
        return
    used_crf, channels = None, model.num_channels
    if options.crf:
        learnt, fields = header.get("crf"), header["model"]
        params = crf.choose_params(options.crf_params, learnt=learnt, model=fields)
        bands = segmenter.crf_bands(config)
        used_crf = {"params": params, "normalization": options.crf_normalization, "bands": bands}
    gives = options.outputs or ("labels" if options.crf else "probs")
    function = outputs(model, variables, what=gives, used_crf=used_crf)
    network = jax.jit(outputs(model, variables, what="probs"))

    def compared(image):
        probs = network(image)
        return probs if used_crf is None else crf.refine(image[0], probs[0], **used_crf)[None]

    step, rest = size_step(model)
    if kind == ".onnx":
        program, run = export.onnx_program(function, options.size, channels=channels)
    else:
        sizes = {"size": options.size, "step": step, "rest": rest}
        program = export.program(function, **sizes, channels=channels)
        run = export.loaded(program)
    tried = ((1, *options.size),) if options.size else tried_sizes(step, rest)
    worst = export.check_program(run, compared, tried, channels=channels)
    with files.written_whole(options.dest) as partial:
        partial.write_bytes(program)
    told = describe(options, header, gives, used_crf, step, rest)
    with files.written_whole(export.description(options.dest)) as partial:
        partial.write_text(json.dumps(told, indent=1) + "\n")
    print(
        f"{options.dest} is written; it differs from the network by {worst:.1e} at most, and "
        f"{export.description(options.dest).name} describes it"
    )


def describe(
    options: Options, header: dict, what: What, used_crf: dict | None, step: int, rest: int
) -> dict:
    """What the program takes and gives, and what export.describe adds."""
    rows, columns = options.size or ("h", "w")
    of_sizes = "" if options.size or step == 1 else f", h and w of the form {step} k + {rest}"
    batch = 1 if options.size else "b"
    last = f", {len(header['class_names'])}" if what == "probs" else ""
    channels = len(header["model"]["mean_bgr"])
    kind_of = "RGB photographs" if channels == 3 else "photographs of the channels in `bands`"
    kind = "float32 probabilities" if what == "probs" else "uint8 class ids"
    told = export.describe(
        header,
        palette=visualization.palette(header["class_names"], header.get("class_colors")),
        version=deeplab_jax.__version__,
        takes=f"uint8 {kind_of} [{batch}, {rows}, {columns}, {channels}]{of_sizes}",
        gives=f"{kind} [{batch}, {rows}, {columns}{last}]",
    )
    if used_crf is not None:
        told["crf"] = asdict(used_crf["params"]) | {"normalization": used_crf["normalization"]}
    if options.dest.suffix.lower() == ".onnx":
        told["versions"] |= {name: version(name) for name in ("jax2onnx", "onnx", "onnxruntime")}
        return told
    return told | {"lasts": export.LASTS}


def outputs(
    model: DeepLabV2, variables: dict, *, what: What, used_crf: dict[str, Any] | None = None
) -> export.Outputs:
    """The function of photographs that is exported; it ends in the CRF of these options."""

    def run(image):
        inputs, size = make_inputs(image, model.mean_bgr), image.shape[1:3]
        scores = model.apply(variables, inputs, size, method="full_size")
        if what == "probs" or used_crf:
            scores = jax.nn.softmax(scores)
        if used_crf:
            energies = crf.energies(scores)
            with forms_of("cpu"):  # run elsewhere too; others take minutes to compile on CPUs
                scores = crf.marginals(image, energies, **used_crf)
        return scores.argmax(-1).astype(jnp.uint8) if what == "labels" else scores

    return run


def size_step(model: DeepLabV2) -> tuple[int, int]:
    """(step, rest): rows and columns must be step * k + rest; with step 1 they are free."""
    if len(model.scales) > 1:
        return 4 * OUTPUT_STRIDE, 1
    if model.alignment == "corners_v1":
        return OUTPUT_STRIDE, 2
    return (OUTPUT_STRIDE, 1) if model.alignment == "corners" else (1, 0)


def tried_sizes(step: int, rest: int) -> tuple[tuple[int, int, int], ...]:
    """Batch, rows and columns of the photographs the program is tried on."""
    if step == 1:
        return (1, 33, 47), (2, 64, 40), (1, 101, 90)
    one, two, three = (step * k + rest for k in (1, 2, 3))
    return (1, one, two), (2, two, one), (1, three, three)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
