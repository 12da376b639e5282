"""The presets of the paper's tables, and the split that they train on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_voc import draw_voc

from deeplab_jax import paper, start
from deeplab_jax.presets import PRESETS
from deeplab_jax.start import Request
from deeplab_jax.types import UserError


def test_every_row_of_the_paper_has_a_preset_and_every_such_preset_a_row():
    of_tables = {name for name in PRESETS if name.startswith(("table", "test_"))}
    assert {row.preset for row in paper.ROWS} == of_tables
    assert [len(paper.rows(table)) for table in "123456789"] == [4, 5, 3, 6, 4, 6, 5, 3, 6]


def config_of(root, **data):
    config = PRESETS["table3_aspp_l"]
    return replace(config, data=replace(config.data, root=root, **data))


def test_voc_2012_with_sbd_is_trained_on_train_aug(tmp_path):
    chosen, _ = start.with_train_split(config_of(draw_voc(tmp_path)))
    assert chosen.data.train_split == "train_aug"


@pytest.mark.parametrize(
    ("split", "own"), [(None, "train "), ("train_aug", "train "), ("trainval_aug", "trainval ")]
)
def test_voc_2012_without_sbd_asks_for_it_in_a_sentence(tmp_path, split, own):
    root = draw_voc(tmp_path, sbd=False)
    with pytest.raises(UserError, match=f"download_data.py voc_aug .* --data.train-split {own}"):
        start.with_train_split(config_of(root, train_split=split))
    chosen, _ = start.with_train_split(config_of(root, train_split="train"))
    assert chosen.data.train_split == "train"


def test_other_folders_are_trained_on_train(tmp_path):
    root = draw_voc(tmp_path, sbd=False)
    shutil.move(root / "VOCdevkit/VOC2012", tmp_path / "mine")
    (tmp_path / "mine/labels.txt").write_text("ground\nwolf\n")
    chosen, _ = start.with_train_split(config_of(tmp_path / "mine"))
    assert chosen.data.train_split == "train"


def test_the_plan_of_a_preset_tells_split_photographs_updates_start_and_alignment(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    import train_voc

    root = draw_voc(tmp_path)
    for name, config in PRESETS.items():
        if not config.data.num_scenes:
            of_city = config.data.train_split == "train_with_coarse"
            split = None if of_city else config.data.train_split
            data = replace(config.data, root=root, train_split=split, val_split="val")
            config = replace(config, data=data, prepared_dir=tmp_path)
        text = "\n".join(train_voc.plan(Request(config, name)))
        split = start.with_train_split(config)[0].data.train_split
        for word in ("trained on", "updates", "start", "alignment", split):
            assert word in text, name
        if split == "train_aug":
            assert "train_aug: 2 photographs" in text


def test_the_page_of_results_has_every_row_with_its_numbers_and_guesses():
    page = (Path(__file__).parents[1] / "experiments/results/README.md").read_text()
    words = {guess: word for word, guess in paper.GUESSES.items()}
    for row in paper.ROWS:
        before, after = ("" if s is None else f"{s:g}" for s in (row.before, row.after))
        guesses = ", ".join(words[guess] for guess in row.guesses)
        cells = (f"{row.table}: {row.label}", f"`{row.preset}`", row.start, before, after, guesses)
        assert f"| {' | '.join(cells)} |" in page
    for guess, word in words.items():
        assert f"| {word} | {guess} |" in page
