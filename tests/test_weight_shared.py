"""A network as others get it: a folder with weights, config.json and a card, or a name."""

import json
from pathlib import Path

import convert_weights
import numpy as np
import pytest

from deeplab_jax import segmenter as segmenters
from deeplab_jax.models.deeplab import build
from deeplab_jax.types import UserError
from deeplab_jax.weights import files, names, shared

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
def flat(draw_variables):
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in MODEL.items()}
    return files.flatten(draw_variables(build(3, **fields)))


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
    config = json.loads((tmp_path / "net/config.json").read_text())
    own = json.dumps(config | {"model_file": "net.py:make"})
    (tmp_path / "net/config.json").write_text(own)
    with pytest.raises(UserError, match="not run because a file says so"):
        segmenters.load(tmp_path / "net")
    (tmp_path / "net/config.json").write_text(json.dumps(config))
    segmenter = segmenters.load(tmp_path / "net")
    assert segmenter.class_names == ("ground", "sky", "sea")
    assert segmenter.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30, 3)
    assert segmenters.load(tmp_path / "net/model.safetensors").class_names == segmenter.class_names


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
    others = ({"class_names": ["a"]}, {"class_names": 3}, {"model": MODEL | {"aspp_rates": [2, 1]}})
    for text in ("[]", *(json.dumps(config | other) for other in others)):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="describes another network than model.safetensors"):
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
    source = tmp_path / "run.safetensors"
    for name, stem in (("drawn", "drawn"), ("camvid", "camvid_small")):
        options = convert_weights.Options(source, Path(name), bundle=True, card=CARD)
        convert_weights.main(options)
        path = bundled / f"{stem}.safetensors"
        assert path.stat().st_size < 0.6 * source.stat().st_size + 20_000
        assert CARD.score in path.with_suffix(".md").read_text()
        found, header = segmenters.read_weights(Path(name))
        assert_same(found, flat, rtol=2**-8)
        assert header["source"]["file"] == "small"
        assert segmenters.load(name).class_names == ("ground", "sky", "sea")
        row = next(line for line in names.listing().splitlines() if line.startswith(name))
        assert CARD.data in row and CARD.score in row and CARD.licence in row
    assert len(list(bundled.iterdir())) == 4
    with pytest.raises(UserError, match="name of published weights: camvid, drawn, voc12"):
        names.resolve("camvit")


@pytest.mark.parametrize("name", ["voc12", "../drawn", "drawn.pth", "."])
def test_a_name_that_is_taken_or_none_is_refused(bundled, flat, name):
    with pytest.raises(UserError, match="cannot be the name of a network"):
        names.bundle(name, flat, HEADER, CARD)
    assert not bundled.exists()


def test_every_bundled_network_of_the_package_loads_and_has_a_card():
    for name, path in names.bundled().items():
        segmenter = segmenters.load(name)
        assert segmenter.meta["card"]["licence"] != "not stated"
        assert path.with_suffix(".md").is_file()
