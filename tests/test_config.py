"""Options, the presets of the paper's tables, and the split that they train on."""

import ast
import dataclasses
import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import train_voc
from drawn_voc import draw_voc

from deeplab_jax import config as configs
from deeplab_jax import evaluation, optim, paper, start
from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.models.deeplab import build
from deeplab_jax.presets import PRESETS
from deeplab_jax.start import Request
from deeplab_jax.types import UserError

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "deeplab_jax"
TRAINED = replace(PRESETS["small"], data=replace(PRESETS["small"].data, root=Path("photographs")))


def changed(config=TRAINED, *, model=None, data=None, **fields):
    return replace(
        config,
        model=replace(config.model, **(model or {})),
        data=replace(config.data, **(data or {})),
        **fields,
    )


def complete(config):
    return replace(config, model=configs.completed(config.model))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_json_as_it_was(name):
    preset = replace(PRESETS[name], workdir=Path("runs/x"))
    text = json.dumps(configs.to_dict(preset))
    assert configs.from_dict(Config, json.loads(text)) == preset


def test_an_unknown_field_is_refused():
    values = configs.to_dict(Config())
    values["model"]["atrous_rates"] = [1]
    with pytest.raises((TypeError, KeyError), match="atrous_rates"):
        configs.from_dict(Config, values)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_trained(name):
    preset = PRESETS[name]
    given = preset.data.root is None and not preset.data.num_scenes
    root = Path("photographs") if given else preset.data.root
    weights = Path("init.safetensors") if preset.model.norm == "frozen" else None
    configs.check(complete(changed(preset, data={"root": root}, weights=weights)))


MSC = {"alignment": "corners", "scales": (1.0, 0.75, 0.5)}
REFUSED = {
    "data.channels 0 must be at least 1": {"data": {"channels": 0}},
    "model.mean_bgr has 3 values, .* have 4": {"data": {"channels": 4}},
    "data.shown_bands .* from 0 to 3": {"data": {"channels": 4, "shown_bands": (4,)}},
    "one channel, or three": {"data": {"channels": 4, "shown_bands": (0, 1)}},
    "crf_bands .* from 0 to 3": {"data": {"channels": 4}, "crf_bands": (0, 7)},
    "need two names": {"data": {"val_root": Path("others"), "train_split": "val"}},
    "batch_size 10 cannot be split into groups of 3; choose a loss_group_size": {
        "batch_size": 10,
        "loss_group_size": 3,
    },
    "ResNet needs its batch norm; give --model.norm frozen or trained": {"model": {"norm": "none"}},
    "VGG has no batch norm to freeze; give --model.norm none": {
        "model": {"backbone": "vgg", "norm": "frozen", "stage_sizes": (2, 2, 3, 3, 3)}
    },
    "data.crop_size 329 does not close .* multiple of 32 plus 1, such as 321 or 353": {
        "model": MSC,
        "data": {"crop_size": 329},
    },
    "data.crop_size 320 does not close .* multiple of 8 plus 1, such as 313 or 321": {
        "model": {"alignment": "corners"},
        "data": {"crop_size": 320},
    },
    "data.crop_size 313 does not close .* multiple of 8 plus 2, such as 306 or 314": {
        "model": vars(PRESETS["table1_4x4"].model),
        "data": {"crop_size": 313},
    },
    "own .data.train_masks., need two": {
        "data": {"train_masks": Path("masks"), "train_split": "val"}
    },
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_sentence(sentence):
    with pytest.raises(UserError, match=sentence) as error:
        configs.check(complete(changed(**REFUSED[sentence])))
    assert "\n" not in str(error.value)
    assert not str(error.value).endswith(".")


def test_the_result_depends_on_numbers_and_not_on_paths_or_periods():
    names = {name for name, _ in configs.result_fields(Config())}
    assert {"model.aspp_rates", "data.crop_size", "optim.power", "seed", "batch_size"} <= names
    free = {"workers", "num_devices", "log_every", "save_every", "workdir", "prepared_dir"}
    assert not names & (free | {"data.root", "weights", "eval.pad_to", "eval.tile"})


def field_names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_every_field_of_a_part_is_an_argument_of_what_it_feeds():
    """Those of the network with the same default."""
    ours = vars(configs.completed(ModelConfig()))
    defaults = {name: p.default for name, p in inspect.signature(build).parameters.items()}
    assert ours.items() <= defaults.items()
    assert field_names(configs.EvalConfig) < field_names(evaluation.InferenceOptions)
    solver = [inspect.signature(f).parameters for f in (optim.solver, optim.caffe_sgd)]
    assert field_names(configs.OptimConfig) <= set().union(*solver)


@pytest.mark.parametrize(("kind", "owner"), [(Config, "config"), (configs.DataConfig, "data")])
def test_every_option_is_read_by_a_script(kind, owner):
    """As `config.name`, `setup.config.name` or `config.data.name`, outside of config.py."""
    names = ("segmenter.py", "start.py")
    paths = [*(REPOSITORY / "experiments").glob("*.py"), *(PACKAGE / name for name in names)]
    read = {
        node.attr
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and {getattr(node.value, "attr", None), getattr(node.value, "id", None)} & {owner, "asked"}
    }
    assert field_names(kind) <= read


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
    """Another folder does not: it is trained on train."""
    root = draw_voc(tmp_path, sbd=False)
    with pytest.raises(UserError, match=f"download_data.py voc_aug .* --data.train-split {own}"):
        start.with_train_split(config_of(root, train_split=split))
    chosen, _ = start.with_train_split(config_of(root, train_split="train"))
    assert chosen.data.train_split == "train"
    shutil.move(root / "VOCdevkit/VOC2012", tmp_path / "mine")
    (tmp_path / "mine/labels.txt").write_text("ground\nwolf\n")
    chosen, _ = start.with_train_split(config_of(tmp_path / "mine"))
    assert chosen.data.train_split == "train"


def test_the_plan_of_a_preset_tells_split_photographs_updates_start_and_alignment(
    tmp_path,
):
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
