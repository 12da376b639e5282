"""A network as others get it: a folder with weights, config.json and a card, or a name."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from deeplab_jax import runs, train
from deeplab_jax.models.deeplab import build
from deeplab_jax.types import UserError
from deeplab_jax.weights import files, names, shared

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import convert_weights  # noqa: E402

MODEL = {
    "backbone": "resnet",
    "stage_sizes": [1, 1, 1, 1],
    "width": 2,
    "norm": "trained",
    "stride_placement": "torch",
    "aspp_rates": [1, 2],
    "scales": [1.0],
    "alignment": "cells",
    "mean_bgr": [1.0, 2.0, 3.0],
}
HEADER = {
    "model": MODEL,
    "class_names": ["ground", "sky", "sea"],
    "channel_order": "BGR",
    "source": {"file": "/home/somebody/runs/small", "sha256": "0" * 64},
}
CARD = shared.Card(
    data="drawn scenes (no licence needed)",
    split="val, 20 photographs",
    score="mean IoU 55.1 %",
    command="python experiments/train_voc.py small",
    licence="CC0",
)


@pytest.fixture(scope="module")
def flat():
    model = build(3, **{k: tuple(v) if isinstance(v, list) else v for k, v in MODEL.items()})
    shapes = jax.eval_shape(lambda: train.init_variables(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(1, 0.1, leaf.shape).astype(np.float32), shapes)
    return files.flatten(drawn)


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, **(tolerance or {"rtol": 0}))


def test_a_folder_gives_back_weights_and_header_and_tells_no_path(tmp_path, flat):
    shared.write(tmp_path / "net", flat, HEADER, CARD)
    assert shared.is_shared(tmp_path / "net")
    found, header = shared.read(tmp_path / "net")
    assert_same(found, flat)
    assert header["model"] == MODEL
    assert header["card"]["score"] == CARD.score
    written = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    assert written.keys() == {"model.safetensors", "config.json", "README.md"}
    assert all(b"somebody" not in content for content in written.values())
    segmenter = runs.load(tmp_path / "net")
    assert segmenter.class_names == ("ground", "sky", "sea")
    assert segmenter.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30, 3)
    assert runs.load(tmp_path / "net/model.safetensors").class_names == segmenter.class_names


def test_the_card_says_what_people_ask_for(tmp_path, flat):
    shared.write(tmp_path, flat, HEADER, CARD)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("---\nlibrary_name: deeplab_jax\npipeline_tag: image-segmentation\n")
    for text in (*vars(CARD).values(), "ground, sky, sea", "[1.0, 2.0, 3.0], BGR"):
        assert text in page
    shared.write(tmp_path, flat, HEADER, shared.Card(data="a | b\nc"))  # again, into the same
    page = (tmp_path / "README.md").read_text()
    assert "| Data | a \\| b c |" in page
    assert "| Licence | not stated |" in page


def test_a_folder_of_other_things_is_refused(tmp_path, flat):
    (tmp_path / "photograph.jpg").touch()
    with pytest.raises(UserError, match="holds photograph.jpg; give a new or an empty folder"):
        shared.write(tmp_path, flat, HEADER, CARD)
    with pytest.raises(UserError, match="cannot be made"):
        shared.write(tmp_path / "photograph.jpg/net", flat, HEADER, CARD)


def test_class_names_may_be_edited_and_the_network_may_not(tmp_path, flat):
    shared.write(tmp_path, flat, HEADER, CARD)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"class_names": ["a", "b", "c"]}))
    assert shared.read(tmp_path)[1]["class_names"] == ["a", "b", "c"]
    for changed in ({"class_names": ["a"]}, {"model": MODEL | {"aspp_rates": [2, 1]}}):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(UserError, match="describes another network than model.safetensors"):
            shared.read(tmp_path)
    for text in ("[]", '{"class_names": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="describes another network"):
            shared.read(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        shared.read(tmp_path)


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """The package's folder of networks, empty; without a network to download from."""
    monkeypatch.setattr(names, "BUNDLED", tmp_path / "bundled")
    monkeypatch.setenv(names.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(names, "fetch", lambda name: pytest.fail("it was downloaded"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "bundled"


def test_a_bundled_network_answers_to_its_name_without_a_download(bundled, tmp_path, flat):
    files.write(tmp_path / "run.safetensors", {"": flat}, HEADER)
    options = convert_weights.Options(
        tmp_path / "run.safetensors", Path("drawn"), bundle=True, card=CARD
    )
    convert_weights.main(options)
    assert {path.name for path in bundled.iterdir()} == {"drawn.safetensors", "drawn.md"}
    assert (bundled / "drawn.safetensors").stat().st_size < 0.6 * 4 * sum(
        a.size for a in flat.values()
    ) + 20_000
    assert CARD.score in (bundled / "drawn.md").read_text()
    found, header = runs.read_weights(Path("drawn"))
    assert_same(found, flat, rtol=2**-8)
    assert header["source"]["file"] == "small"
    assert runs.load("drawn").class_names == ("ground", "sky", "sea")
    row = next(line for line in names.listing().splitlines() if line.startswith("drawn"))
    assert CARD.data in row and CARD.score in row and CARD.licence in row
    with pytest.raises(UserError, match="no name of published weights; these are drawn, voc12"):
        names.resolve("camvit")
    Path("drawn").mkdir()  # a file or folder of the name wins
    with pytest.raises(UserError, match="drawn is not a work folder"):
        runs.load("drawn")


@pytest.mark.parametrize("name", ["voc12", "../drawn", "drawn.pth", "."])
def test_a_name_that_is_taken_or_none_is_refused(bundled, flat, name):
    with pytest.raises(UserError, match="cannot be the name of a network"):
        shared.bundle(name, flat, HEADER, CARD)
    assert not bundled.exists()


def test_every_bundled_network_of_the_package_loads_and_has_a_card():
    for name in names.bundled():
        segmenter = runs.load(name)
        assert segmenter.meta["card"]["licence"] != "not stated"
        assert (names.BUNDLED / f"{name}.md").is_file()
