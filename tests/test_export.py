"""What is exported computes what the network computes, and reads back as what it was."""

import importlib.util
import io
import json
import re
import subprocess
import sys
import types
from datetime import date, timedelta
from pathlib import Path

import export_model
import jax
import jaxtyping
import numpy as np
import pytest
from jax import export as jax_export
from PIL import Image

from deeplab_jax import crf, train
from deeplab_jax.models.deeplab import build, make_inputs
from deeplab_jax.ops import xla
from deeplab_jax.types import UserError
from deeplab_jax.visualization import palette
from deeplab_jax.weights import export, files, sources

STAGES = (1, 1, 1, 1)
FIELDS = {
    "backbone": "resnet",
    "stage_sizes": STAGES,
    "width": 2,
    "norm": "trained",
    "aspp_rates": (1, 2, 3, 4),
    "scales": (1.0,),
    "stride_placement": "caffe",
    "alignment": "cells",
    "mean_bgr": (104.008, 116.669, 122.675),
}
VGG_FIELDS = FIELDS | {
    "backbone": "vgg",
    "stage_sizes": (2, 2, 3, 3, 3),
    "norm": "none",
    "head_width": 4,
}


def header_of(fields):
    return {"model": fields, "class_names": ("ground", "sky", "sea")}


def drawn(fields):
    """Variables of a network by their names."""
    shapes = files.named(train.variable_shapes(build(num_classes=3, **fields)))
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}


@pytest.mark.parametrize(
    ("fields", "names"),
    [(FIELDS, "kazuto"), (FIELDS, "torchvision"), (VGG_FIELDS, "torchvision")],
)
def test_an_exported_file_reads_back_as_the_weights_it_was_made_of(tmp_path, fields, names):
    flat = drawn(fields)
    path = tmp_path / "w.safetensors"
    export.write_torch(path, flat, header_of(fields), names=names)
    found, header = sources.read(path)
    assert found.keys() == flat.keys()
    for name, array in flat.items():
        np.testing.assert_array_equal(found[name], array)
    assert header["class_names"] == ["ground", "sky", "sea"]
    assert header["model"] == json.loads(json.dumps(fields))


def test_a_layer_without_a_pytorch_name_is_refused(tmp_path):
    fields = VGG_FIELDS | {"norm": "trained"}
    with pytest.raises(UserError, match="has no name in PyTorch's kazuto convention"):
        export.write_torch(tmp_path / "w", drawn(fields), header_of(fields), names="kazuto")


@pytest.fixture
def symbolic_sizes():
    """Sizes that the type checker may find: while exporting they are expressions, no integers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def trained(draw_variables):
    def make(**fields):
        model = build(num_classes=3, **FIELDS | fields)
        return model, draw_variables(model)

    return make


def exported(model, variables, what):
    outputs = export_model.outputs(model, variables, what=what)
    with xla.forms_of("plain"):  # as export_model does: other forms ask how large a map is
        step, rest = export_model.size_step(model)
        return export.program(outputs, step=step, rest=rest)


ALONE = """
import sys
from pathlib import Path
import numpy as np
from jax import export
program = export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
given = np.load(sys.argv[2])
np.savez(sys.argv[3], **{name: program.call(given[name]) for name in given})
assert not any(name.startswith(("deeplab_jax", "flax")) for name in sys.modules)
"""


def run_alone(folder, program, **images):
    """What a program of the folder gives, without code of ours."""
    np.savez(folder / "images.npz", **images)
    command = [sys.executable, "-c", ALONE, program, "images.npz", "found.npz"]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    return np.load(folder / "found.npz")


def test_a_program_of_any_size_gives_the_networks_probabilities_without_code_of_ours(
    tmp_path, trained, symbolic_sizes
):
    model, variables = trained()
    (tmp_path / "program").write_bytes(exported(model, variables, "probs"))
    rng = np.random.default_rng(0)
    sizes = ((1, 33, 47), (3, 24, 40), (1, 50, 33))
    images = {f"{i}": rng.integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(sizes)}
    found = run_alone(tmp_path, "program", **images)
    probs = jax.jit(export_model.outputs(model, variables, what="probs"))
    for name, image in images.items():
        np.testing.assert_allclose(found[name], probs(image), atol=1e-4)


@pytest.fixture
def export_as(tmp_path, trained, monkeypatch):
    """Writes the program of a small network to a file of this name; gives its probabilities."""

    def write(name, *, fields=(), **options):
        model, variables = trained(**dict(fields))
        header = header_of(FIELDS | {"mean_bgr": model.mean_bgr})
        loaded = export_model.segmenter.Segmenter(model, variables, header)
        monkeypatch.setattr(export_model.segmenter, "load", lambda source, **_: loaded)
        export_model.main(export_model.Options(tmp_path / "run", tmp_path / name, **options))
        return jax.jit(export_model.outputs(model, variables, what="probs"))

    return write


@pytest.mark.slow
@pytest.mark.parametrize("alignment", ["corners", "half_pixel"])
def test_a_multi_scale_program_takes_sizes_of_32k_plus_1(trained, symbolic_sizes, alignment):
    model, variables = trained(scales=(1.0, 0.75, 0.5), alignment=alignment)
    program = exported(model, variables, "labels")
    probs = jax.jit(export_model.outputs(model, variables, what="probs"))
    assert export.check_program(export.loaded(program), probs, ((1, 33, 65),)) <= 1e-4
    with pytest.raises(ValueError, match="32"):
        jax_export.deserialize(bytearray(program)).call(np.zeros((1, 40, 65, 3), np.uint8))


@pytest.mark.parametrize("what", ["labels", "probs"])
def test_a_program_that_ends_in_the_crf_gives_refines_labels_without_code_of_ours(
    tmp_path, export_as, what
):
    options = {"crf": True, "size": (40, 52), "outputs": what, "crf_params": "resnet101"}
    probs = export_as("refined.stablehlo", **options)
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 52, 3), np.uint8)
    image[:, 10:30, 12:40] //= 8  # a thing with edges
    (found,) = run_alone(tmp_path, "refined.stablehlo", image=image)["image"]
    expected = crf.refine(image[0], np.asarray(probs(image))[0], crf.PUBLISHED["resnet101"])
    if what == "probs":
        np.testing.assert_allclose(found, expected, atol=1e-4)
    else:
        np.testing.assert_array_equal(found, expected.argmax(-1))
    told = json.loads((tmp_path / "refined.stablehlo.json").read_text())
    assert told["gives"].startswith({"labels": "uint8 class ids", "probs": "float32"}[what])
    assert told["crf"]["sigma_xy"] == crf.PUBLISHED["resnet101"].sigma_xy


def test_a_program_of_one_size_has_static_shapes_and_is_described_beside(tmp_path, export_as):
    export_as("program", fields={"scales": (1.0, 0.75, 0.5)}, outputs="labels", size=(40, 33))
    program = jax_export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    assert program.in_avals[0].shape == (1, 40, 33, 3)
    assert program.out_avals[0].shape == (1, 40, 33)
    (main,) = [n for n in program.mlir_module().splitlines() if "func public @main" in n]
    assert main.count("%arg") == 1  # no platform's number beside the photograph
    told = json.loads((tmp_path / "program.json").read_text())
    assert told["takes"] == "uint8 RGB photographs [1, 40, 33, 3]"
    assert told["gives"] == "uint8 class ids [1, 40, 33]"
    assert told["class_names"] == ["ground", "sky", "sea"]
    assert told["palette_rgb"] == palette(["ground", "sky", "sea"])[:3].tolist()
    assert told["mean_bgr_inside"] == [104.008, 116.669, 122.675]
    assert told["versions"]["jax"] == jax.__version__
    assert date.today() - date.fromisoformat(told["exported_on"]) <= timedelta(days=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program", "program.json"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("small.onnx", {}, "of ONNX takes photographs of one size: give --size ROWS COLUMNS"),
        ("small.stablehlo", {"crf": True}, "with the CRF takes photographs of one size"),
        ("small.onnx", {"crf": True, "size": (9, 9)}, ".onnx file cannot hold the CRF"),
        ("small.pth", {}, ".pth files are not written; give a name that ends in"),
        ("small.tflite", {}, ".tflite files are not written"),
    ],
)
def test_what_cannot_be_exported_is_told_before_anything_is_loaded(tmp_path, name, options, part):
    with pytest.raises(UserError, match=part):
        export_model.main(export_model.Options(tmp_path / "run", tmp_path / name, **options))


def test_a_missing_converter_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'deeplab_jax\[onnx\]'"):
        export.onnx_program(jax.nn.softmax, (3, 5))


def test_what_a_converter_refuses_is_told_in_one_sentence(monkeypatch):
    def refuse(*arguments, **options):
        raise NotImplementedError("no rule for this\nTraceback ...")

    for package in ONNX:
        broken = types.SimpleNamespace(to_onnx=refuse, helper=None)
        monkeypatch.setitem(sys.modules, package, broken)
    with pytest.raises(UserError, match="jax2onnx or onnxruntime says: no rule for this; write"):
        export.onnx_program(jax.nn.softmax, (3, 5))


ONNX = ("jax2onnx", "onnx", "onnxruntime")
SIZE = 41, 57
RUNTIMES = {
    "jax": "JAX",
    "onnxruntime": "onnxruntime",
    "tensorflow": "TensorFlow",
    "iree.compiler": "IREE",
}
"""Module -> how the README calls it."""
NEEDS = {"onnxruntime": ONNX}


def skip_without(module):
    for name in NEEDS.get(module, (module.partition(".")[0],)):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}, which is not among the extra test")


def snippet(runtime):
    """`segment` of the README, and the `labels` of a runtime."""
    page = (Path(export.__file__).parent / "README.md").read_text()
    page = page[page.index("### From a JPEG") :]
    common = re.search(r"```python\n(import io\n.*?)```", page, re.S)[1]
    own = re.search(rf"\n{runtime}\b.*?```python\n(.*?)```", page, re.S)[1]
    return common.replace("513, 513", "{}, {}".format(*SIZE)) + own


@pytest.mark.slow
@pytest.mark.parametrize("module", RUNTIMES)
def test_a_jpeg_becomes_a_png_in_each_runtime_as_the_page_says(tmp_path, export_as, module):
    skip_without(module)
    name = "small.onnx" if module in NEEDS else "small.stablehlo"
    probs = export_as(name, outputs="labels", size=SIZE)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8))
    picture.save(tmp_path / "photograph.jpg")
    text = snippet(RUNTIMES[module]) + (
        "import sys\n"
        "Path = __import__('pathlib').Path\n"
        "Path('mask.png').write_bytes(segment(Path('photograph.jpg').read_bytes()))\n"
        "assert not any(name.startswith(('deeplab_jax', 'flax')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", text], check=True, cwd=tmp_path)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    image = np.asarray(Image.open(io.BytesIO((tmp_path / "photograph.jpg").read_bytes())))
    assert (
        export.check_program(lambda _: mask[None], lambda _: probs(image[None]), ((1, 1, 1),))
        < 1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"alignment": "corners"},
        {"alignment": "cells"},
        {"scales": (1.0, 0.75, 0.5), "stride_placement": "caffe"},
        {**VGG_FIELDS, "alignment": "ports"},
    ],
    ids=["corners", "cells", "msc", "vgg"],
)
def test_networks_of_every_kind_become_onnx(tmp_path, export_as, fields):
    skip_without("onnxruntime")
    export_as("small.onnx", fields=fields, outputs="labels", size=SIZE)  # which compares them
    told = json.loads((tmp_path / "small.onnx.json").read_text())
    assert told["versions"].keys() > set(ONNX)
    assert "lasts" not in told
    assert (tmp_path / "small.onnx").stat().st_mode & 0o777 == 0o644


def test_channels_are_reversed_as_float32():
    """IREE compiles no reversal of uint8."""
    text = jax.jit(make_inputs).lower(np.zeros((1, 4, 5, 3), np.uint8)).as_text()
    assert "reverse" in text
    assert not [line for line in text.splitlines() if "reverse" in line and "ui8" in line]


def test_a_program_that_gives_nan_is_refused():
    probs = np.zeros((1, 3, 5, 2), np.float32)
    with pytest.raises(UserError, match="differs from the model by nan"):
        export.check_program(lambda _: probs + np.nan, lambda _: probs, ((1, 3, 5),))


def test_a_program_that_differs_from_the_network_is_refused(symbolic_sizes):
    def outputs(image):
        return jax.nn.softmax(image.astype(np.float32))

    program = export.loaded(export.program(outputs, step=1))
    sizes = ((1, 3, 5),)
    assert export.check_program(program, outputs, sizes) <= 1e-4
    with pytest.raises(UserError, match="differs from the model by 1"):
        export.check_program(program, lambda image: 1 - outputs(image), sizes)
