"""A run whose photographs, or work folder, have moved; and weights of other classes."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
from drawn_folder import draw_folder

from deeplab_jax import start
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import scenes
from deeplab_jax.types import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "NUM_VAL", 2)
    monkeypatch.setattr(scenes, "SIDE", 32)


def test_every_script_that_reads_the_data_of_a_run_takes_root(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    reading = [p for p in EXPERIMENTS.glob("*.py") if "root=options.root" in p.read_text()]
    assert reading
    for path in reading:
        assert "root" in {field.name for field in fields(__import__(path.stem).Options)}


def test_photographs_that_are_gone_are_asked_for_by_root(tmp_path):
    config = Config(data=DataConfig(root=tmp_path / "gone"))
    with pytest.raises(UserError, match="gone, which is not there; give --root FOLDER"):
        start.open_scored(config, (), root=None, prepared_dir=tmp_path)
    root = draw_folder(tmp_path / "here")
    folder = start.open_scored(config, ("val",), root=root, prepared_dir=tmp_path)
    assert folder.place.root == root


def test_scenes_of_a_run_are_drawn_again_elsewhere(few_scenes, tmp_path):
    config = Config(data=DataConfig(num_scenes=3))
    first, again = (
        start.open_scored(config, ("val",), root=None, prepared_dir=tmp_path / name).path
        for name in ("here", "there")
    )
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
