"""Runs on four bands of 16 bits and one of floats: trained, resumed, scored, predicted."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from test_bands import draw_set

from deeplab_jax import load, train, workdir
from deeplab_jax.data import images
from deeplab_jax.models import deeplab
from deeplab_jax.weights import files, first_layer, sources

TINY = """small --model.stage-sizes 1 1 1 1 --model.width 4 --model.aspp-rates 1 --model.scales 1.0
  --num-steps 2 --batch-size 2 --num-devices 1 --max-per-device 2 --data.crop-size 33 --log-every 1
  --save-every 1 --workdir run""".split()

KINDS = {"tif": (np.uint16, 4, (3, 0)), "npy": (np.float32, 1, (0,))}
"""Type of the values, channels, and the bands that the CRF compares, of files of a suffix."""

pytestmark = pytest.mark.slow


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

    # The same command goes on after the first update and comes to the same parameters.
    before = load(tmp_path / "run").variables
    shutil.rmtree(tmp_path / "run/checkpoints/2")
    assert script(*command) == 0
    assert "going on in run after update 1" in capsys.readouterr().out
    after = load(tmp_path / "run").variables
    jax.tree.map(np.testing.assert_array_equal, before, after)

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


def test_a_run_on_four_bands_starts_from_weights_of_rgb(script, tmp_path, capsys):
    root = draw_set(tmp_path / "data")
    fields = {"stage_sizes": (1, 1, 1, 1), "aspp_rates": (1,), "width": 4, "scales": (1.0,)}
    fields |= {"norm": "trained"}
    model = deeplab.build(3, **fields)
    variables = train.init_variables(model, jax.random.key(1))
    header = {"model": fields, "class_names": ("field", "water", "town"), "source": {}}
    files.write(tmp_path / "rgb.safetensors", variables, header)
    kernel = np.asarray(variables["params"]["trunk"]["conv1"]["kernel"])

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
