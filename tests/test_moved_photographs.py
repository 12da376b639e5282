"""A run whose photographs, or work folder, have moved; and weights of other classes."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from deeplab_jax import start
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import scenes
from deeplab_jax.types import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
READERS = ("evaluate_voc", "make_report", "trimap", "field_of_view", "search_crf", "predict")


@pytest.fixture
def splits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import splits

    return splits


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_VAL", 2)
    monkeypatch.setattr(scenes, "SIDE", 32)


@pytest.mark.parametrize("script", READERS)
def test_every_script_that_reads_the_data_of_a_run_takes_root(monkeypatch, script):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    options = __import__(script).Options
    assert "root" in {field.name for field in fields(options)}


def test_no_script_opens_the_data_of_a_run_without_root():
    scripts = [path for path in EXPERIMENTS.glob("*.py") if path.name not in ("splits.py",)]
    reading = [p.stem for p in scripts if "splits.find_root" in p.read_text()]
    reading += [p.stem for p in scripts if "splits.open_val" in p.read_text()]
    reading += [p.stem for p in scripts if "splits.predictions" in p.read_text()]
    assert set(reading) == set(READERS)


def test_photographs_that_are_gone_are_asked_for_by_root(splits, tmp_path):
    config = Config(data=DataConfig(root=tmp_path / "gone"))
    with pytest.raises(UserError, match="gone, which is not there; give --root FOLDER"):
        splits.find_root(config, None, tmp_path)
    assert splits.find_root(config, tmp_path, tmp_path) == tmp_path


def test_scenes_of_a_run_are_drawn_again_elsewhere(splits, few_scenes, tmp_path):
    config = Config(data=DataConfig(num_scenes=3))
    first = splits.find_root(config, None, tmp_path / "here")
    again = splits.find_root(config, None, tmp_path / "there")
    drawn = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert sum(path.suffix == ".jpg" for path in drawn) == 5
    for path in drawn:
        assert (first / path).read_bytes() == (again / path).read_bytes()


CLASSES = ("ground", "cat", "dog")
WEIGHTS = Config(weights=Path("w.safetensors"))


def test_a_last_layer_of_other_classes_is_refused_by_the_first_name_that_differs():
    with pytest.raises(UserError, match="class 1 is 'cat', and .* 'cow'; give --fresh-head"):
        start.refuse_other_classes(WEIGHTS, CLASSES, ("ground", "cow", "dog"))


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (WEIGHTS, CLASSES),
        (WEIGHTS, ("Ground", "Cat", "Dog")),
        (WEIGHTS, ()),
        (WEIGHTS, ("class 0", "class 1", "class 2")),
        (replace(WEIGHTS, fresh_head=True), ("a", "b", "c")),
    ],
)
def test_a_last_layer_of_the_same_or_of_unnamed_classes_is_kept(config, given):
    start.refuse_other_classes(config, given, CLASSES)
