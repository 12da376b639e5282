"""Files of Keras 3, written here group by group as Keras writes them."""

import io
import json
import zipfile

import jax
import numpy as np
import pytest
import source_networks as theirs
from weight_logits import CLASSES, PHOTOGRAPH, assert_same, bgr, last_layer

from deeplab_jax import segmenter, train
from deeplab_jax.models.deeplab import build
from deeplab_jax.types import UserError
from deeplab_jax.weights import files, sources

h5py = pytest.importorskip("h5py", reason="needs h5py, the extra keras")

STAGES = (1, 2, 1, 1)
WIDTH = 4
MEAN_BGR = np.array([103.939, 116.779, 123.68])


def random_resnet(rng):
    """(class, name, arrays) of each layer that has any."""
    layers = []
    for unit in theirs.units(STAGES, WIDTH):
        conv, norm = theirs.keras_names(unit)
        kernel = theirs.random_kernel(rng, unit.shape).transpose(2, 3, 1, 0)
        bias = rng.normal(size=unit.shape[0]).astype(np.float32)
        layers.append(("Conv2D", conv, (kernel, bias)))
        layers.append(("BatchNormalization", norm, theirs.random_norm(rng, unit.shape[0])))
    return layers


def random_vgg(rng):
    weights = theirs.random_vgg(rng, 2, "block{}_conv{}".format)
    return [
        (
            "Conv2D",
            name,
            (weights[f"{name}/weights"].transpose(2, 3, 1, 0), weights[f"{name}/biases"]),
        )
        for name in ("block{}_conv{}".format(*position) for position in theirs.VGG)
    ]


GROUPS = {"Conv2D": "conv2d", "BatchNormalization": "batch_normalization"}


def write_numbered(file, layers, *, named, folder="layers"):
    """Groups numbered by class from the second on, as Keras 3 writes them."""
    with h5py.File(file, "w") as opened:
        counts = dict.fromkeys(GROUPS, 0)
        for kind, name, arrays in layers:
            number = f"_{counts[kind]}" if counts[kind] else ""
            counts[kind] += 1
            group = opened.create_group(f"{folder}/{GROUPS[kind]}{number}/vars")
            if named:
                group.attrs["name"] = name
            for i, array in enumerate(arrays):
                group[str(i)] = array
        opened["optimizer/vars/0"] = np.zeros((), np.int64)
        opened["optimizer/vars/1"] = np.zeros(3, np.float32)
    return file


def write_keras(path, layers, *, named):
    """The zip of weights, config and metadata."""
    config = [
        {"class_name": "InputLayer", "config": {"name": "input"}},
        *({"class_name": kind, "config": {"name": name}} for kind, name, _ in layers),
    ]
    weights = write_numbered(io.BytesIO(), layers, named=named)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.3.3"}))
        archive.writestr(
            "config.json", json.dumps({"class_name": "Functional", "config": {"layers": config}})
        )
        archive.writestr("model.weights.h5", weights.getvalue())
    return path


def write(folder, layers, kind):
    if kind == "weights.h5":
        return write_numbered(folder / "w.weights.h5", layers, named=True)
    return write_keras(folder / "w.keras", layers, named=kind == "newer .keras")


@pytest.mark.parametrize("kind", ["weights.h5", "newer .keras", "older .keras"])
def test_a_resnet_of_keras_3_computes_the_same(tmp_path, kind):
    rng = np.random.default_rng(0)
    layers = random_resnet(rng)
    path = write(tmp_path, layers, kind)
    arrays = {name: found for _, name, found in layers}
    by_key = {unit[:3]: theirs.keras_names(unit) for unit in theirs.units(STAGES, WIDTH)}

    def normalised(key, x, stride, rate):
        conv, norm = by_key[key]
        kernel, bias = arrays[conv]
        x = theirs.conv(x, kernel.transpose(3, 2, 0, 1), bias, stride=stride, rate=rate)
        return theirs.batch_norm(x, *arrays[norm], epsilon=1.001e-5)

    kernel = theirs.random_kernel(rng, (CLASSES, 32 * WIDTH, 1, 1))

    def reference(dtype):
        x = bgr(PHOTOGRAPH, dtype, MEAN_BGR)
        return theirs.conv(theirs.resnet(x, STAGES, normalised, stride_in="reduce"), kernel)

    plain = {"aspp_rates": (1,), "head_kernel_size": 1, "scales": (1.0,)}
    assert_same(path, PHOTOGRAPH, reference, extra=last_layer(kernel), **plain)


@pytest.mark.parametrize("kind", ["weights.h5", "older .keras"])
def test_vgg_without_top_fills_the_trunk_and_the_head_starts_afresh(tmp_path, kind):
    layers = random_vgg(np.random.default_rng(1))
    path = write(tmp_path, layers, kind)
    given, header = sources.read(path)
    assert header["class_names"] == ()
    assert {name.split("/")[0] for name in given} == {"trunk"}
    for _, name, (kernel, bias) in layers:
        ours = name.replace("block", "conv").replace("_conv", "_")
        np.testing.assert_array_equal(given[f"trunk/{ours}/kernel"], kernel)
        np.testing.assert_array_equal(given[f"trunk/{ours}/bias"], bias)

    fields = header["model"] | {"head_width": 8, "scales": (1.0,)}
    model = build(num_classes=3, **fields)
    rng = np.random.default_rng(2)
    shapes = train.variable_shapes(model)
    start = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)
    filled = files.flatten(files.fill(start, given, fresh_head=True))
    np.testing.assert_array_equal(filled["trunk/conv1_1/kernel"], layers[0][2][0])
    for name, array in files.flatten(start).items():
        if name.startswith("head/"):
            np.testing.assert_array_equal(filled[name], array)
    with pytest.raises(UserError, match=r"lack 24 arrays of the network, e.g. head/fc6_1/bias"):
        files.fill(start, given)
    with pytest.raises(UserError, match="has no trained last layer"):
        segmenter.load(path)


def test_a_model_inside_a_model_is_read(tmp_path):
    layers = random_vgg(np.random.default_rng(2))
    path = write_numbered(tmp_path / "w.h5", layers, named=True, folder="layers/functional/layers")
    assert len(sources.read(path)[0]) == 26


def test_a_file_that_does_not_name_its_layers_is_refused(tmp_path):
    layers = random_vgg(np.random.default_rng(3))
    path = write_numbered(tmp_path / "w.weights.h5", layers, named=False)
    with pytest.raises(UserError, match=r"does not name its layers.* as a \.keras file"):
        sources.read(path)


def test_two_models_in_a_file_are_refused(tmp_path):
    layers = random_vgg(np.random.default_rng(4))
    path = write_numbered(tmp_path / "w.weights.h5", layers + layers[:1], named=True)
    with pytest.raises(UserError, match="holds block1_conv1/kernel twice"):
        sources.read(path)


def test_a_layer_of_another_kind_is_refused(tmp_path):
    layers = random_vgg(np.random.default_rng(5))
    layers.append(("BatchNormalization", "odd", (np.ones(3, np.float32),) * 3))
    path = write_numbered(tmp_path / "w.weights.h5", layers, named=True)
    with pytest.raises(UserError, match="layer odd has 3 arrays"):
        sources.read(path)


@pytest.mark.parametrize("cut", [100, 1000, -40])
def test_a_keras_file_cut_short_is_refused(tmp_path, cut):
    path = write_keras(tmp_path / "w.keras", random_vgg(np.random.default_rng(6)), named=True)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match="cannot be read"):
        sources.read(path)
