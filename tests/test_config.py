import ast
import dataclasses
import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest

from deeplab_jax import config as configs
from deeplab_jax import evaluation, optim
from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.models.deeplab import build
from deeplab_jax.presets import PRESETS
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


CORNERS = {"alignment": "corners"}
REFUSED = {
    "batch_size 10 cannot be split into groups of 3; choose a loss_group_size": changed(
        batch_size=10, loss_group_size=3
    ),
    "VGG has no batch norm to freeze; give --model.norm none": changed(
        PRESETS["vgg16_aspp_l"], model={"norm": "frozen"}
    ),
    "ResNet needs its batch norm; give --model.norm frozen or trained": changed(
        model={"norm": "none"}
    ),
    "data.crop_size 329 does not close .* multiple of 32 plus 1, such as 321 or 353": changed(
        model=CORNERS | {"scales": (1.0, 0.75, 0.5)}, data={"crop_size": 329}
    ),
    "data.crop_size 320 does not close .* multiple of 8 plus 1, such as 313 or 321": changed(
        model=CORNERS, data={"crop_size": 320}
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_sentence(sentence):
    with pytest.raises(UserError, match=sentence) as error:
        configs.check(complete(REFUSED[sentence]))
    assert "\n" not in str(error.value)
    assert not str(error.value).endswith(".")


def test_crops_that_do_not_close_are_free_with_half_pixels():
    configs.check(complete(changed(data={"crop_size": 200}, model={"scales": (1.0, 0.75, 0.5)})))


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
    parameters = inspect.signature(build).parameters
    assert ours.items() <= {name: p.default for name, p in parameters.items()}.items()
    assert field_names(configs.EvalConfig) < field_names(evaluation.InferenceOptions)
    solver = (
        inspect.signature(optim.solver).parameters,
        inspect.signature(optim.caffe_sgd).parameters,
    )
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
