"""What a run starts from, what it may change when it goes on, and the data it is scored on."""

import importlib
from dataclasses import fields, replace
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from drawn_folder import SMALL, draw_folder, write_mask, write_photograph
from runs_with_faults import EXPERIMENTS
from tiny_networks import shallow

from deeplab_jax import metrics, segmenter, start, train, workdir
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import scenes
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import UserError

PORTS = {"alignment": "ports", "stride_placement": "torch", "mean_bgr": [1.0, 2.0, 3.0]}


@pytest.fixture
def conventions(monkeypatch, capsys):
    """The model that a run of a preset gets from weights with these fields, and what is printed."""

    def begin(preset, theirs, **model):
        meta = {"model": theirs, "class_names": ()}
        monkeypatch.setattr(segmenter, "read_weights", lambda path, answers: ({}, meta))
        config = replace(PRESETS[preset], weights=Path("w.pth"))
        config = replace(config, model=replace(config.model, **model))
        config = replace(config, data=replace(config.data, root=Path("x"), train_split="train"))
        return start.begin(config).config, capsys.readouterr().out

    return begin


def test_weights_bring_their_conventions_where_nobody_has_said_otherwise(conventions):
    config, printed = conventions("resnet101_aspp_msc", PORTS)
    assert (config.model.alignment, config.model.stride_placement) == ("ports", "torch")
    assert config.model.mean_bgr == (1.0, 2.0, 3.0)
    assert "model.alignment is ports, as w.pth was trained with" in printed
    assert config.fresh_head  # these weights know no classes


def test_what_is_typed_or_fixed_by_a_row_of_the_paper_wins_and_is_told(conventions):
    config, printed = conventions("table4_plain", PORTS)
    model = config.model
    assert (model.alignment, model.mean_bgr) == ("corners", (104.008, 116.669, 122.675))
    assert model.stride_placement == "torch"  # another placement would be another network
    assert "model.alignment is corners; w.pth was trained with ports" in printed
    _, printed = conventions("table3_aspp_l", {"mean_bgr": [103.939, 116.779, 123.68]})
    assert "w.pth was trained with [103.939, 116.779, 123.68]" in printed
    config, printed = conventions("small", PORTS, alignment="cells")
    assert config.model.alignment == "cells"
    assert "model.alignment is cells; w.pth was trained with ports" in printed


def test_quickstart_has_the_papers_mean_the_default_alignment_and_draws_its_scenes(tmp_path):
    preset = PRESETS["quickstart"]
    data = replace(preset.data, num_scenes=4)
    asked = replace(preset, workdir=tmp_path / "run", prepared_dir=tmp_path, data=data)
    begun = start.resolve(asked)
    model = begun.config.model
    assert (model.alignment, model.stride_placement) == ("cells", "caffe")
    assert model.mean_bgr == (104.008, 116.669, 122.675)
    assert len(start.Setup(begun).train) == 4


def begun(folder, asked, completed, **described):
    """A work folder that holds a run with a checkpoint."""
    (folder / "checkpoints/1").mkdir(parents=True)
    described = {"photographs": "p", "accumulation": 1} | described
    workdir.record_run(folder, asked, completed, ("a", "b"), **described)


ASKED = replace(PRESETS["small"], data=DataConfig(root=Path("x"), crop_size=33, train_split="t"))
BROUGHT = replace(ASKED.model, **{**PORTS, "mean_bgr": (1.0, 2.0, 3.0)})


def test_a_run_that_goes_on_has_what_its_weights_brought_and_todays_way_of_running(tmp_path):
    """As are the mean and range that were measured of other channels."""
    asked = replace(ASKED, data=replace(ASKED.data, channels=2))
    measured = replace(asked.data, range=(0.0, 9.0, 1.0, 4.0))
    brought = replace(BROUGHT, mean_bgr=(1.5, 2.5))
    begun(tmp_path, asked, replace(asked, data=measured, model=brought))
    asked = replace(asked, workdir=tmp_path, save_every=7)
    config = start.resolve(asked).config
    assert config == replace(asked, data=measured, model=brought)
    typed = replace(asked, model=replace(asked.model, alignment="ports"))  # as it is anyway
    assert start.resolve(typed).config == config


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"seed": 5}, "holds a run with seed 0, and 5 was asked for; give the old value"),
        ({"model": replace(ASKED.model, alignment="cells")}, "model.alignment ports, and cells"),
        ({"data": replace(ASKED.data, crop_size=41)}, "data.crop_size 33, and 41 was asked for"),
    ],
)
def test_another_result_is_refused_by_the_field_that_differs(tmp_path, changed, sentence):
    begun(tmp_path, ASKED, replace(ASKED, model=BROUGHT))
    with pytest.raises(UserError, match=sentence):
        start.resolve(replace(ASKED, workdir=tmp_path, **changed))


def test_a_run_of_version_2_is_read_but_does_not_go_on(tmp_path):
    """Its options of that time are left out, and the flip has another name."""
    begun(tmp_path, ASKED, replace(ASKED, model=BROUGHT))
    path = tmp_path / "config.json"
    text = path.read_text().replace('"version": 3', '"version": 2')
    text = text.replace('"flip": true', '"mirror": false, "exact_padding": true')
    path.write_text(text)
    unflipped = replace(ASKED, model=BROUGHT, data=replace(ASKED.data, flip=False), workdir=None)
    assert workdir.read_run(tmp_path).config == unflipped
    with pytest.raises(UserError, match="of an earlier version .* choose another --workdir"):
        start.resolve(replace(ASKED, workdir=tmp_path))


def test_a_frozen_norm_from_scratch_is_refused_of_a_network_of_ones_own_too():
    sentence = "from scratch a frozen batch norm is the identity .* give --weights FILE"
    asked = replace(ASKED, model=replace(ASKED.model, norm="frozen"), workdir=Path("nowhere"))
    with pytest.raises(UserError, match=sentence):
        start.resolve(asked)
    own = segmenter.network(vars(BROUGHT) | {"norm": "frozen"}, 2)
    with pytest.raises(UserError, match=sentence):
        start.refuse_frozen_from_scratch(replace(asked, model_file="mine.py:build"), own)
    start.refuse_frozen_from_scratch(replace(asked, weights=Path("w.pth")), own)


GB = 10**9
SHALLOW = shallow()


def setup_of(config, devices, **parts):
    """A Setup with parts that are not made from its config."""
    made = start.Setup(start.Start(replace(config, workdir=Path("nowhere"))))
    vars(made).update({"class_weights": None, "devices": devices, **parts})
    return made


@pytest.fixture
def choose(monkeypatch):
    """(preset, options) -> photographs at once on two cards of 16 GB, 3 GB and 2 a photograph."""

    def chosen(preset, *, backend="gpu", devices=2, **options):
        config = replace(PRESETS[preset], **options)
        share = -(-config.batch_size // devices)

        def needed(found, accumulation):
            return 3 * GB + 2 * GB * -(-share // accumulation)

        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setattr(start, "needed_bytes", needed)
        card = Mock(spec=jax.Device, process_index=0)
        card.memory_stats.return_value = {"bytes_limit": 16 * GB}
        return -(-share // setup_of(config, [card] * devices).accumulation)

    return chosen


@pytest.mark.parametrize(
    ("train", "val", "seen"),
    [("trainval_aug", "val", True), ("train_aug", "val", False), ("trainval", "test", False)],
)
def test_val_is_not_scored_where_it_was_trained_on(train, val, seen):
    data = DataConfig(train_split=train, val_split=val)
    assert start.Setup(start.Start(Config(data=data))).has_seen_val is seen


ONE_CPU = {"backend": "cpu", "devices": 1}


@pytest.mark.parametrize(
    ("expected", "preset", "options"),
    [
        (5, "resnet101_aspp", {}),
        (5, "resnet101_aspp", {"devices": 1}),  # 10 do not fit
        (4, "resnet101_aspp", {"devices": 1, "batch_size": 30}),
        (2, "resnet101_aspp", {"max_per_device": 2}),  # typed
        (4, "small", {}),
        (1, "resnet101_aspp_msc", ONE_CPU),
        (10, "vgg16_aspp_l", ONE_CPU),
        (8, "small", ONE_CPU),
        (16, "quickstart", ONE_CPU),
        (10, "resnet101_aspp", {**ONE_CPU, "batch_loss": "lovasz"}),
    ],
)
def test_a_share_is_worked_on_at_once_or_halved_until_it_fits(
    choose, capsys, expected, preset, options
):
    assert choose(preset, **options) == expected
    if not options:
        assert f"{expected} of a device's" in capsys.readouterr().out


@pytest.mark.parametrize(("preset", "batch_loss"), [("small", None), ("resnet101_aspp", "dice")])
def test_memory_does_not_choose_a_share_that_the_result_depends_on(choose, preset, batch_loss):
    with pytest.raises(UserError, match="a trained batch norm and a batch loss are computed"):
        choose(preset, devices=1, batch_size=16, batch_loss=batch_loss)


def test_the_update_that_is_measured_has_the_weights_of_the_classes(monkeypatch):
    """A program without them would be compiled for its memory alone, and another for training."""
    preset = PRESETS["quickstart"]
    config = replace(preset, data=replace(preset.data, crop_size=33), batch_size=2)
    texts = []

    def measure(step, *shapes):
        texts.append(step.lower(*shapes).as_text())
        return 1

    monkeypatch.setattr(train, "peak_bytes", measure)
    for weights in (None, np.float32([1, 2, 4])):
        parts = {"model": SHALLOW, "trained": SHALLOW, "class_weights": weights}
        start.needed_bytes(setup_of(config, jax.local_devices()[:1], **parts), 1)
    assert texts[0] != texts[1]


def test_more_photographs_need_more_memory():
    """Measured by the compiler, from shapes alone."""
    config = replace(PRESETS["quickstart"], data=replace(PRESETS["quickstart"].data, crop_size=33))
    parts = {"model": SHALLOW, "trained": SHALLOW}

    def peak(number):
        made = setup_of(replace(config, batch_size=number), jax.local_devices()[:2], **parts)
        return start.needed_bytes(made, 1)

    assert peak(8) > 1.2 * peak(2)


def test_every_script_that_reads_the_data_of_a_run_takes_root():
    reading = [p for p in EXPERIMENTS.glob("*.py") if "root=options.root" in p.read_text()]
    assert reading
    for path in reading:
        options = importlib.import_module(path.stem).Options
        assert "root" in {field.name for field in fields(options)}


def test_photographs_that_are_gone_are_asked_for_by_root(tmp_path):
    config = Config(data=DataConfig(root=tmp_path / "gone"))
    with pytest.raises(UserError, match="gone, which is not there; give --root FOLDER"):
        start.open_scored(config, (), root=None, prepared_dir=tmp_path)
    root = draw_folder(tmp_path / "here")
    folder = start.open_scored(config, ("val",), root=root, prepared_dir=tmp_path)
    assert folder.place.root == root


def test_scenes_of_a_run_are_drawn_again_elsewhere(tmp_path):
    config = Config(data=DataConfig(num_scenes=3))
    first, again = (
        start.open_scored(config, ("val",), root=None, prepared_dir=tmp_path / name).path
        for name in ("here", "there")
    )
    drawn = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert sum(path.suffix == ".jpg" for path in drawn) == 3 + scenes.NUM_VAL
    for path in drawn:
        assert (first / path).read_bytes() == (again / path).read_bytes()


CLASSES = ("ground", "cat", "dog")
WEIGHTS = Config(weights=Path("w.safetensors"))


def test_a_last_layer_of_other_classes_is_refused_by_the_first_name_that_differs():
    with pytest.raises(UserError, match="class 1 is 'cat', and .* 'cow'; give --fresh-head"):
        start.refuse_other_classes(WEIGHTS, CLASSES, ("ground", "cow", "dog"))
    unnamed = ("class 0", "class 1", "class 2")
    for same in (CLASSES, ("Ground", "Cat", "Dog"), (), unnamed):
        start.refuse_other_classes(WEIGHTS, same, CLASSES)
    start.refuse_other_classes(replace(WEIGHTS, fresh_head=True), ("a", "b", "c"), CLASSES)


def test_a_run_may_train_on_one_data_set_and_be_scored_on_another(tmp_path):
    photograph, mask = "a_000000_000001_leftImg8bit.png", "a_000000_000001_gtFine_labelIds.png"
    write_photograph(tmp_path / "gta5/images/00001.png")
    write_photograph(tmp_path / "cityscapes/leftImg8bit/val/a" / photograph)
    for path in ("gta5/labels/00001.png", f"cityscapes/gtFine/val/a/{mask}"):
        write_mask(tmp_path / path, np.resize(np.arange(34), SMALL), palette=None)
    data = DataConfig(root=tmp_path / "gta5", val_root=tmp_path / "cityscapes")
    config, _ = start.with_train_split(Config(data=data, prepared_dir=tmp_path / "prepared"))
    dataset = start.Setup(start.Start(config)).dataset
    names = [source[0]["name"] for source in dataset.splits.values()]
    assert names == ["00001", "a_000000_000001"]
    scored = start.open_scored(config, ("val",), root=None, prepared_dir=tmp_path)
    assert scored.path == tmp_path / "cityscapes"


def test_a_mean_without_some_classes_still_counts_their_pixels():
    confusion = np.array([[4, 0, 4], [0, 2, 0], [0, 0, 6]])
    # IoU 1/2, 1 and 6/10
    found = metrics.mean_iou_without(confusion, ["road", "sky", "truck"], ["truck"])
    assert found == pytest.approx((1 / 2 + 1) / 2)
    with pytest.raises(UserError, match="no class 'lorry'; the classes are road"):
        metrics.check_class_names(["lorry"], ["road", "sky"])
