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


REFUSED = {
    "batch_size 10 cannot be split into groups of 3; choose a loss_group_size": changed(
        batch_size=10, loss_group_size=3
    ),
    "must hold 1.0, the size scores are fused at": changed(model={"scales": (0.5, 0.75)}),
    "VGG has no batch norm to freeze; give --model.norm none": changed(
        PRESETS["vgg16_aspp_l"], model={"norm": "frozen"}, data={"root": Path("x")}
    ),
    "ResNet needs its batch norm; give --model.norm frozen or trained": changed(
        model={"norm": "none"}
    ),
    "a resnet trunk has 4 stages, model.stage_sizes names 5": changed(
        model={"stage_sizes": (1, 1, 1, 1, 1)}
    ),
    "data.crop_size 329 does not close .* multiple of 32 plus 1, such as 321 or 353": changed(
        model={"alignment": "corners", "scales": (1.0, 0.75, 0.5)}, data={"crop_size": 329}
    ),
    "data.crop_size 320 does not close .* multiple of 8 plus 1, such as 313 or 321": changed(
        model={"alignment": "corners"}, data={"crop_size": 320}
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_sentence(sentence):
    with pytest.raises(UserError, match=sentence) as error:
        configs.check(complete(REFUSED[sentence]))
    assert "\n" not in str(error.value)
    assert not str(error.value).endswith(".")


def test_crops_that_do_not_close_are_free_with_half_pixels():
    free = changed(data={"crop_size": 200}, model={"scales": (1.0, 0.75, 0.5)})
    configs.check(complete(free))


def test_the_result_depends_on_numbers_and_not_on_paths_or_periods():
    names = {name for name, _ in configs.result_fields(Config())}
    assert {"model.aspp_rates", "data.crop_size", "optim.power", "seed", "batch_size"} <= names
    free = {"workers", "num_devices", "log_every", "save_every", "workdir", "prepared_dir"}
    assert not names & (free | {"data.root", "weights", "eval.pad_to", "eval.tile"})


def test_every_leaf_is_either_a_result_or_a_runtime_field():
    def leaves(config, prefix=""):
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                yield from leaves(value, f"{prefix}{field.name}.")
            else:
                yield prefix + field.name, bool(field.metadata.get("runtime"))

    results = {name for name, _ in configs.result_fields(Config())}
    assert results == {name for name, is_runtime in leaves(Config()) if not is_runtime}


def test_every_model_field_is_one_of_the_network_with_the_same_default():
    ours = vars(configs.completed(ModelConfig()))
    parameters = inspect.signature(build).parameters
    theirs = {name: parameter.default for name, parameter in parameters.items()}
    assert ours.items() <= theirs.items()


def test_every_evaluation_field_is_an_inference_option():
    options, config = map(dataclasses.fields, (evaluation.InferenceOptions, configs.EvalConfig))
    assert {f.name for f in options} > {f.name for f in config}


def test_every_option_of_the_solver_is_an_argument_of_it():
    functions = (optim.solver, optim.caffe_sgd)
    arguments = {name for f in functions for name in inspect.signature(f).parameters}
    assert {f.name for f in dataclasses.fields(configs.OptimConfig)} <= arguments


@pytest.mark.parametrize(("kind", "owner"), [(Config, "config"), (configs.DataConfig, "data")])
def test_every_option_is_read_by_a_script(kind, owner):
    """As `config.name`, `setup.config.name` or `config.data.name`, outside of config.py."""
    names = ("segmenter.py", "setup.py", "start.py")
    paths = [*(REPOSITORY / "experiments").glob("*.py"), *(PACKAGE / name for name in names)]
    sources = [path.read_text() for path in paths]
    read = {
        node.attr
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and {owner, "asked"} & named(node.value)
    }
    assert {f.name for f in dataclasses.fields(kind)} <= read


def named(node):
    """The last name of an expression such as `setup.config` or `config`."""
    return {getattr(node, "attr", None), getattr(node, "id", None)}
