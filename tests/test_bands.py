"""Photographs of other channels than RGB, from files to weights and predictions."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from drawn_folder import open_dataset
from PIL import Image as PILImage
from tiny_networks import resnet, vgg, write_weights

from deeplab_jax import crf, evaluation, load, train, visualization, workdir
from deeplab_jax.data import folders, images, loader, masks, transforms
from deeplab_jax.models import deeplab
from deeplab_jax.types import IGNORE_LABEL, MEAN_COLOUR, UserError, padding_pixel
from deeplab_jax.weights import files, first_layer, sources

H, W = 12, 17


def drawn(dtype, channels, seed=0, size=(H, W)):
    """Values of a kind, another range for each channel."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 1, (*size, channels)) * (40 + 300 * np.arange(channels))
    if dtype == np.uint8:
        values = values % 256
    return values.astype(dtype)


# What tifffile is told, and whether it is given planes.
LAYOUTS = {
    "contig": ({"planarconfig": "contig"}, False),
    "separate": ({"planarconfig": "separate"}, True),
    "pages": ({}, True),
    "imagej": ({"imagej": True, "metadata": {"axes": "CYX"}}, True),
    "rgb": ({"photometric": "rgb"}, False),
    "deflate": ({"planarconfig": "contig", "compression": "zlib", "predictor": True}, False),
}


def write_tiff(path, values, layout="contig"):
    options, as_planes = LAYOUTS[layout]
    values = np.ascontiguousarray(np.moveaxis(values, -1, 0)) if as_planes else values
    tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bands_of_a_tiff_are_read_however_they_lie_in_it(tmp_path, layout):
    values = drawn(np.uint16, 4)
    path = write_tiff(tmp_path / "a.tif", values, layout)
    np.testing.assert_array_equal(images.read_values(path, channels=4), values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_arrays_are_read_as_they_were_saved(tmp_path, dtype):
    values = drawn(dtype, 5)
    np.save(tmp_path / "a.npy", values)
    found = images.read_values(tmp_path / "a.npy", channels=5)
    np.testing.assert_array_equal(found, values)
    assert found.dtype == dtype
    np.save(tmp_path / "b.npy", values[..., 0])
    np.testing.assert_array_equal(
        images.read_values(tmp_path / "b.npy", channels=1), values[..., :1]
    )


def test_photographs_are_read_by_the_channels_they_have(tmp_path):
    values, path = drawn(np.uint8, 4), tmp_path / "a.png"
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        PILImage.fromarray(np.squeeze(values[..., :channels]), mode).save(path)
        np.testing.assert_array_equal(images.read(path, channels=channels), values[..., :channels])
    PILImage.fromarray(np.repeat(values[..., :1], 3, axis=2)).save(path)
    np.testing.assert_array_equal(images.read(path, channels=1), values[..., :1])


def test_four_channels_of_16_bits_in_a_png_are_in_the_order_of_the_file(tmp_path):
    cv2 = pytest.importorskip("cv2")
    values = drawn(np.uint16, 4)
    cv2.imwrite(str(tmp_path / "a.png"), values[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(images.read_values(tmp_path / "a.png", channels=4), values)


def test_values_that_gdal_calls_no_data_are_no_number(tmp_path):
    values = drawn(np.int16, 3)
    values[2, 3] = -9999
    tags = [(images.NODATA_TAG, "s", 0, "-9999", True)]
    tifffile.imwrite(
        tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig", extratags=tags
    )
    found = images.read_values(tmp_path / "a.tif", channels=3)
    assert np.isnan(found[2, 3]).all() and np.isnan(found).sum() == 3
    measured = images.measure([tmp_path / "a.tif"], channels=3)
    assert min(measured.value_range) >= 0
    image = images.read(tmp_path / "a.tif", channels=3, value_range=measured.value_range)
    assert (image[2, 3] == 0).all()


@pytest.mark.parametrize(
    ("name", "values", "channels", "sentence"),
    [
        ("a.npy", np.zeros((4, H, W), np.float32), 4, "by numpy.moveaxis.* if its channels"),
        ("a.npy", np.zeros((H, W, 3), np.uint8), 4, r"has 3 channels, and --data.channels 4"),
        ("a.npy", np.zeros((2, H, W, 3), np.uint8), 3, r"\[rows, columns, channels\]"),
        ("a.npy", np.zeros((H, W, 2), complex), 2, "values of type complex128"),
        ("a.npy", np.array([None, {}]), 2, "no array of numbers"),
        ("a.npy", np.zeros((H, W, 2), np.uint16), 2, "more than 8 bits a channel"),
        ("a.tif", np.zeros((H, W, 3), np.uint16), 4, "has 3 channels, and --data.channels 4"),
    ],
)
def test_what_does_not_fit_is_refused_by_a_sentence(tmp_path, name, values, channels, sentence):
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, values, allow_pickle=True)
    else:
        write_tiff(path, values)
    with pytest.raises(UserError, match=sentence):
        images.read(path, channels=channels)


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
@pytest.mark.parametrize("kept", [4, 200, -40])
def test_a_file_that_was_cut_off_is_refused(tmp_path, name, kept):
    path = tmp_path / name
    np.save(path, drawn(np.uint16, 4)) if name == "a.npy" else write_tiff(path, drawn(np.uint16, 4))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{name} "):
        images.read(path, channels=4)


def test_a_range_of_another_length_or_order_is_refused():
    values = drawn(np.float32, 3)
    with pytest.raises(UserError, match="4 numbers; give LOW HIGH, or such a pair for each"):
        images.to_8_bits(values, (0, 1, 2, 3))
    with pytest.raises(UserError, match="the range 3 3"):
        images.to_8_bits(values, (3, 3))


def test_range_and_mean_are_those_of_numpy_over_all_pixels(tmp_path):
    pictures = [drawn(np.float32, 4, seed, (H + seed, W)) for seed in range(3)]
    pictures[1][0, 0, 2] = np.nan
    pictures[2][3, 4, 1] = 1e6  # a broken pixel
    for i, picture in enumerate(pictures):
        np.save(tmp_path / f"{i}.npy", picture)
    found = images.measure([tmp_path / f"{i}.npy" for i in range(3)], channels=4)
    pixels = np.concatenate([picture.reshape(-1, 4) for picture in pictures]).astype(np.float64)
    for c in range(4):
        numbers = pixels[:, c][~np.isnan(pixels[:, c])]
        low, high = np.percentile(numbers, [0.1, 99.9])
        np.testing.assert_allclose(found.value_range[2 * c : 2 * c + 2], (low, high), rtol=1e-6)
        scaled = np.rint(np.clip((numbers - low) / (high - low), 0, 1) * 255)
        np.testing.assert_allclose(found.mean[c], scaled.mean(), atol=2e-3)


def test_only_the_mean_of_8_bit_photographs_is_measured(tmp_path):
    pictures = [drawn(np.uint8, 2, seed) for seed in range(2)]
    for i, picture in enumerate(pictures):
        np.save(tmp_path / f"{i}.npy", picture)
    paths = sorted(tmp_path.iterdir())
    found = images.measure(paths, channels=2)
    assert found.value_range is None
    np.testing.assert_allclose(found.mean, np.mean(pictures, axis=(0, 1, 2)), atol=5e-4)
    np.save(tmp_path / "9.npy", drawn(np.uint16, 2))
    with pytest.raises(UserError, match="0.npy has 8 bits a channel, .*9.npy more"):
        images.measure([*paths, tmp_path / "9.npy"], channels=2)
    (tmp_path / "9.npy").write_bytes(b"\x93NUMPY broken")
    with pytest.raises(UserError, match="9.npy"):
        images.measure([*paths, tmp_path / "9.npy"], channels=2)
    assert images.measure([*paths, tmp_path / "9.npy"], channels=2, bad_data="skip") == found


def test_a_large_split_is_measured_by_a_sample_that_is_always_the_same(tmp_path, monkeypatch):
    pictures = [drawn(np.uint16, 1, seed, (40, 50)) for seed in range(5)]
    for i, picture in enumerate(pictures):
        np.save(tmp_path / f"{i}.npy", picture)
    paths = sorted(tmp_path.iterdir())
    exact = images.measure(paths, channels=1)
    monkeypatch.setattr(images, "MOST_PHOTOGRAPHS", 3)
    monkeypatch.setattr(images, "MOST_PIXELS", 1500)
    found = images.measure(paths, channels=1)
    assert found == images.measure(paths, channels=1) != exact
    np.testing.assert_allclose(found.mean, exact.mean, rtol=0.05)


def test_a_constant_channel_has_a_range_and_one_without_numbers_is_refused(tmp_path):
    values = np.stack([np.full((H, W), 7.0), np.full((H, W), np.nan)], -1)
    np.save(tmp_path / "b.npy", values[..., 0])
    assert images.measure([tmp_path / "b.npy"], channels=1).value_range == (7, 8)
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match="channel 1 holds no number"):
        images.measure([tmp_path / "a.npy"], channels=2)


def draw_set(root, *, dtype=np.uint16, channels=4, suffix=".tif"):
    """Three photographs for training and one for val, with masks of 3 classes."""
    for i in range(4):
        split = "val" if i == 3 else "train"
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        labels = np.kron(rng.integers(0, 3, (5, 6)), np.ones((8, 8))).astype(np.uint8)
        shades = labels[..., None] * (1 + np.arange(channels)) * 100
        image = (shades + rng.uniform(0, 50, shades.shape)).astype(dtype)
        path = root / "images" / split / f"p{i}{suffix}"
        np.save(path, image) if suffix == ".npy" else write_tiff(path, image)
        PILImage.fromarray(labels).save(root / "masks" / split / f"p{i}.png")
    (root / "labels.txt").write_text("0 field\n1 water\n2 town\n")
    return root


def test_prepared_photographs_are_those_that_are_read(tmp_path):
    root, ends = draw_set(tmp_path / "data"), (0, 200, 0, 400, 10, 500, 0, 1000)
    dataset = open_dataset(root, range=ends, channels=4)
    for i in range(3):
        expected = images.read(root / f"images/train/p{i}.tif", channels=4, value_range=ends)
        np.testing.assert_array_equal(dataset.splits["train"][i]["image"], expected)
    assert dataset.identity != open_dataset(root, range=(0, 1000), channels=4).identity


def test_npy_files_are_read_where_a_folder_has_no_other_photographs(tmp_path):
    np.save(tmp_path / "a.npy", drawn(np.uint8, 2))
    for name in ("a.npy", "b.png"):
        if name == "b.png":
            PILImage.fromarray(drawn(np.uint8, 3)).save(tmp_path / name)
        assert list(folders.index_photographs(tmp_path)) == [name[0]]
        assert images.find([tmp_path])[0] == [tmp_path / name]
    with pytest.raises(UserError, match="array of NumPy; give the number of its channels"):
        images.read(tmp_path / "a.npy")


def test_masks_may_be_arrays_of_whole_numbers(tmp_path):
    labels = np.random.default_rng(0).choice([0, 1, 2, IGNORE_LABEL], (H, W))
    np.save(tmp_path / "a.npy", labels)
    found = masks.read(tmp_path / "a.npy", masks.Rules(3))
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == np.uint8
    np.save(tmp_path / "a.npy", labels.astype(np.float32))
    with pytest.raises(UserError, match="of float32; save class ids"):
        masks.read(tmp_path / "a.npy", masks.Rules(3))


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
def test_other_channels_are_augmented_as_those_of_rgb(channels):
    image, labels = drawn(np.uint8, channels), drawn(np.uint8, 1)[..., 0] % 3
    padding = tuple(10 * c + 1 for c in range(channels))
    options = {"crop_size": 15, "scales": (0.5, 1.0, 1.7), "flip": True}

    def augmented(image, seed, padding):
        rng = np.random.default_rng(seed)
        return transforms.augment(image, labels, **options, rng=rng, padding=padding)

    for seed in range(6):
        found, masks = augmented(image, seed, padding)
        assert found.shape == (15, 15, channels)
        for c in range(channels):
            alone, same = augmented(np.repeat(image[..., [c]], 3, 2), seed, (padding[c],) * 3)
            np.testing.assert_array_equal(found[..., c], alone[..., 0])
        np.testing.assert_array_equal(masks, same)


def test_batches_are_padded_with_the_mean_of_each_channel():
    items = [{"image": drawn(np.uint8, 4), "labels": np.zeros((H, W), np.uint8), "name": "a"}]
    padding = (1, 2, 3, 4)
    options = {"seed": 0, "start": 0, "stop": 1, "batch_size": 1, "crop_size": 20}
    (batch,) = loader.batches(items, **options, accumulation=2, padding=padding)
    assert batch.image.shape == (1, 2, 1, 20, 20, 4)
    assert (batch.image[0, 0, 0, H:] == padding).all()
    assert (batch.image[0, 1] == padding).all()  # a place left over
    crops = jnp.asarray(batch.image[0, 0]), jnp.asarray(batch.labels[0, 0])
    inputs = train.crop_inputs(*crops, (1.2, 2.0, 2.9, 4.4))
    assert (np.asarray(inputs)[0, H:] == 0).all()


def test_inputs_of_other_channels_keep_their_order():
    image, mean = drawn(np.uint8, 4), (1.0, 20.5, 30.0, 4.25)
    np.testing.assert_array_equal(deeplab.make_inputs(image, mean), image - np.float32(mean))
    assert padding_pixel((1.4, 2.6)) == (1, 3)
    assert padding_pixel((1.0, 2.0, 3.0)) == MEAN_COLOUR


@pytest.mark.parametrize("channels", [1, 4, 13])
def test_an_inflated_kernel_is_the_mean_of_rgb_and_keeps_the_answer_to_grey(channels):
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 5)).astype(np.float32)
    found = first_layer.fit({"trunk/conv1/kernel": kernel}, channels)["trunk/conv1/kernel"]
    assert found.shape == (7, 7, channels, 5) and found.dtype == np.float32
    for c in range(channels):
        expected = (kernel[:, :, 0] + kernel[:, :, 1] + kernel[:, :, 2]) / channels
        np.testing.assert_allclose(found[:, :, c], expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(2), kernel.sum(2), atol=1e-5)


def test_a_first_kernel_for_other_channels_is_refused():
    given = {"trunk/conv1_1/kernel": np.zeros((3, 3, 5, 8)), "trunk/conv1_1/bias": np.zeros(8)}
    assert first_layer.fit(given, 5) is given
    with pytest.raises(UserError, match="photographs of 5 channels, and the data has 4"):
        first_layer.fit(given, 4)


@pytest.mark.parametrize("network", [resnet, vgg])
def test_the_first_kernel_of_both_trunks_is_known(network):
    params = train.variable_shapes(network(mean_bgr=(1.0,) * 4))["params"]
    names = {deeplab.weight_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    (first,) = names.keys() & set(first_layer.KERNELS)
    assert names[first].shape[2] == 4


@pytest.mark.parametrize(
    ("image", "channels", "sentence"),
    [
        (drawn(np.uint8, 3), 4, r"\[rows, columns, 4\].*\(12, 17, 3\) came"),
        (drawn(np.uint8, 1)[..., 0], 1, r"\[rows, columns, 1\].*\(12, 17\) came"),
        (drawn(np.uint16, 4), 4, "uint8 with values 0..255, and uint16 came"),
        (drawn(np.float32, 3), 3, "must be uint8 .* and float32 came"),
        ([[0]], 3, "must be an array of NumPy or JAX, and builtins.list came"),
    ],
)
def test_what_is_no_photograph_is_refused(image, channels, sentence):
    evaluation.check_image(drawn(np.uint8, 4), channels=4)
    with pytest.raises(UserError, match=sentence):
        evaluation.check_image(image, channels=channels)


@pytest.mark.slow
def test_the_crf_on_chosen_bands_is_that_on_a_photograph_of_them():
    image = drawn(np.uint8, 5)
    probs = np.random.default_rng(1).dirichlet(np.ones(3), (H, W)).astype(np.float32)
    expected = crf.refine(image[..., [4, 0, 2]], probs)
    np.testing.assert_array_equal(crf.refine(image, probs, bands=(4, 0, 2)), expected)
    one = crf.refine(image, probs, bands=(3,), backend="exact")
    alone = np.zeros((H, W, 3), np.uint8)
    alone[..., 0] = image[..., 3]  # the other colours are alike everywhere
    np.testing.assert_allclose(one, crf.refine(alone, probs, backend="exact"), atol=1e-5)
    assert np.abs(crf.refine(image, probs, bands=(3,)) - one).mean() < 0.05
    with pytest.raises(UserError, match="name three of its bands"):
        crf.refine(image, probs)
    with pytest.raises(UserError, match=r"numbers from 0 to 4 .* got \(5,\)"):
        crf.refine(image, probs, bands=(5,))


def test_pictures_show_three_bands_or_one():
    image = drawn(np.uint8, 4)
    for bands, shown in (((2, 1, 3), [2, 1, 3]), (None, [0, 1, 2]), ((3,), [3, 3, 3])):
        found = visualization.show_bands(image, bands)
        np.testing.assert_array_equal(found, image[..., shown])
    assert visualization.title_of_bands(4, (2, 1, 0)) == "bands 2, 1, 0"
    assert visualization.title_of_bands(3) == visualization.title_of_bands(1) == "photograph"
    with pytest.raises(UserError, match="one band, or three .* 0 to 3, and 4"):
        visualization.show_bands(image, (4,))


TINY = """small --model.stage-sizes 1 1 1 1 --model.width 4 --model.aspp-rates 1 --model.scales 1.0
  --num-steps 2 --batch-size 2 --num-devices 1 --max-per-device 2 --data.crop-size 33 --log-every 1
  --save-every 1 --workdir run""".split()

KINDS = {"tif": (np.uint16, 4, (3, 0)), "npy": (np.float32, 1, (0,))}
"""Type of the values, channels, and the bands that the CRF compares, of files of a suffix."""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", KINDS)
def test_a_run_on_other_channels_from_data_to_predictions(script, tmp_path, capsys, suffix):
    dtype, channels, compared = KINDS[suffix]
    root = draw_set(tmp_path / "data", dtype=dtype, channels=channels, suffix=f".{suffix}")
    command = ["train_voc", *TINY, "--data.root", root, "--data.channels", channels]

    assert script("check_data", root, "--channels", channels) == 0
    assert script(*command) == 0
    told = capsys.readouterr().out
    assert f"channel {channels - 1}: " in told
    config = workdir.read_run(tmp_path / "run").config
    photographs = sorted((root / "images/train").iterdir())
    found = images.measure(photographs, channels=channels)
    assert config.data.range == found.value_range and config.model.mean_bgr == found.mean

    chosen = ("--crf", "--crf-bands", *compared)
    assert script("evaluate_voc", "run", *chosen) == 0
    scores = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert {"network", "network + CRF"} < set(scores)
    assert script("make_report", "run", *chosen) == 0
    assert script("predict", "run", root / "images/val", *chosen, "--output", "out") == 0
    segmenter = load(tmp_path / "run")
    (path,) = (root / "images/val").iterdir()
    values = images.read_values(path, channels=channels)
    labels = segmenter.predict(values).argmax(-1)
    assert script("predict", "run", path, "--output", "plain") == 0
    np.testing.assert_array_equal(np.asarray(PILImage.open(f"plain/{path.stem}.png")), labels)

    # Weights carry mean and range with them.
    assert script("convert_weights", "run", "w.safetensors") == 0
    assert script("predict", "w.safetensors", path, "--output", "from_file") == 0
    np.testing.assert_array_equal(np.asarray(PILImage.open(f"from_file/{path.stem}.png")), labels)
    assert script("export_model", "run", "program", "--size", 40, 48) == 0
    described = json.loads(Path("program.json").read_text())
    assert f"{channels}]" in described["takes"]
    assert described["bands"]["data.channels"] == channels
    assert script("export_model", "run", "torch.safetensors") == 0
    again, header = sources.read(Path("torch.safetensors"))
    assert header["bands"]["data.channels"] == channels
    flat = files.flatten(segmenter.variables)
    for name in first_layer.KERNELS:
        if name in flat:
            np.testing.assert_array_equal(again[name], flat[name])


@pytest.mark.slow
def test_a_run_on_four_bands_starts_from_weights_of_rgb(script, tmp_path, capsys, draw_variables):
    root = draw_set(tmp_path / "data")
    weights = write_weights(
        tmp_path / "rgb.safetensors", draw_variables, ("field", "water", "town")
    )
    kernel = sources.read(weights)[0]["trunk/conv1/kernel"]

    def started(workdir):
        arguments = [*TINY[:-1], workdir, "--data.root", root, "--data.channels", 4]
        arguments += ["--weights", "rgb.safetensors", "--optim.learning-rate", 0]
        assert script("train_voc", *arguments) == 0
        return np.asarray(load(tmp_path / workdir).variables["params"]["trunk"]["conv1"]["kernel"])

    expected = np.repeat(kernel.mean(2, keepdims=True) * 3 / 4, 4, axis=2)
    np.testing.assert_allclose(started("inflated"), expected, atol=1e-6)
    assert "inflated from 3 to 4 channels" in capsys.readouterr().out
    assert script("train_voc", *TINY[:-1], "rgb", "--data.root", root, "--weights", "inflated") == 2
    assert "trained on photographs of 4 channels" in capsys.readouterr().err
