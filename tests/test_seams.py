"""The snippets of experiments/extend.md, from outside the package."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_folder import draw_folder
from runs_with_faults import EXPERIMENTS, run_script
from tiny_networks import shallow

from deeplab_jax import evaluation, load, optim, segmenter, train
from deeplab_jax.data import loader
from deeplab_jax.models.heads import ASPP
from deeplab_jax.types import UserError

MODEL = shallow(ASPP(2, rates=(1,)), norm="trained")
PAGE = (EXPERIMENTS / "extend.md").read_text()
IMPORTS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)[0]


SNIPPETS = {
    part.splitlines()[0]: re.findall(r"```python\n(.*?)```", part, flags=re.S)
    for part in re.split(r"^## ", PAGE, flags=re.M)[1:]
}


def run(code, **names):
    """The names that a snippet, with the imports of the page, has defined."""
    exec(IMPORTS + code, names)
    return names


def draw_photographs():
    """Photographs whose right half is class 1 and brighter, one in four pixels ignored."""
    rng = np.random.default_rng(0)
    masks = np.zeros((4, 40, 44), np.uint8)
    masks[:, :, 22:] = 1
    images = (rng.integers(0, 60, (4, 40, 44, 3)) + 120 * masks[..., None]).astype(np.uint8)
    masks[rng.random(masks.shape) < 0.25] = 255
    return images, masks


IMAGES, MASKS = draw_photographs()
OPTIMIZER = optim.caffe_sgd(optim.poly(0.01, 20), classifier_multiplier=1.0)


def a_batch():
    return run(SNIPPETS["Data"][1], images=IMAGES, masks=MASKS)["batch"]


def train_twice(model=MODEL, *, optimizer=OPTIMIZER, update=None, batches=None):
    """The variables after two updates, which move the parameters."""
    update = update or train.make_step(model, optimizer, seed=0, batch_size=4, group_size=4)
    state = train.init_state(train.init_variables(model, jax.random.key(0)), optimizer)
    start, step = state.params, jax.jit(update)
    for batch in batches or [a_batch()] * 2:
        state, values = step(state, batch)
        assert np.isfinite(float(values["loss"]))
        assert float(values["loss"]) > 0
    assert int(state.step) == 2
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), start, state.params)
    assert max(jax.tree.leaves(moved)) > 0
    return train.variables_of(state)


@pytest.mark.parametrize("code", SNIPPETS["Loss"], ids=["focal", "dice"])
def test_a_loss_of_ones_own(code):
    train_twice(update=run(code, model=MODEL, optimizer=OPTIMIZER)["update"])


def test_an_optimiser_of_optax():
    train_twice(optimizer=run(SNIPPETS["Optimiser"][0])["optimizer"])


def test_arrays_and_augmentation_of_ones_own():
    source = run(SNIPPETS["Data"][0], images=IMAGES, masks=MASKS)
    assert next(source["batches"]).image.shape == (1, 1, 4, 33, 33, 3)
    names = run(SNIPPETS["Augmentation"][0], source=source["source"])
    train_twice(batches=[jax.tree.map(lambda leaf: leaf[0], b) for b in names["batches"]])


def test_an_augmentation_of_another_size_is_refused():
    source = [{"image": IMAGES[0], "labels": MASKS[0]}]
    options = {"seed": 0, "start": 0, "stop": 1, "batch_size": 1, "crop_size": 33}
    whole = loader.batches(source, **options, augment=lambda image, labels, rng: (image, labels))
    with pytest.raises(UserError, match=r"crops of \(33, 33\) with 3 channels were expected"):
        next(whole)


TINY = """
def tiny(num_classes):
    return build(num_classes, trunk=Conv(4, stride=8, norm="trained"))
"""


def own_network(folder, function):
    """The page's mine.py, with `tiny` for its own network."""
    (folder / "mine.py").write_text(IMPORTS + SNIPPETS["Head, trunk, network"][0] + TINY)
    return f"{folder / 'mine.py'}:{function}"


def test_a_network_of_ones_own_is_saved_and_right_at_every_size(tmp_path):
    """Predictions in a shared array equal those of the network at the photograph's own size."""
    model_file, path = own_network(tmp_path, "tiny"), tmp_path / "w.safetensors"
    model = segmenter.network({}, 2, model_file=model_file)
    variables = train_twice(model)
    code = SNIPPETS["Save and load"][0].replace("mine.py:build", model_file)
    loaded = run(code, path=path, variables=variables)["segmenter"]
    with pytest.raises(UserError, match="is not run because a file says so"):
        load(path)
    image = np.resize(IMAGES[0], (50, 77, 3))
    whole, sizes = jnp.asarray(image[None]), jnp.array([[50, 77]])
    alone = evaluation.batch_outputs(model, variables, whole, sizes)[0]
    np.testing.assert_allclose(loaded.predict(image), alone, rtol=0, atol=1e-5)
    for size in ((40, 44), (20, 61)):
        image = np.resize(IMAGES[0], (*size, 3))
        expected = evaluation.predict(model, variables, image)
        np.testing.assert_array_equal(loaded.predict(image), expected)


OWN_PARTS = """
import pathlib
def make_loss(class_weights):
    assert class_weights.min() > 0
    return lambda logits, labels: 7 + 0 * logits.sum(-1)

def make_optimizer(schedule):
    return optax.sgd(lambda step: 0 * schedule(step))

def augment(image, labels, rng):
    (pathlib.Path(__file__).parent / "augmented").touch()
    return np.resize(image, (33, 33, 3)), np.resize(labels, (33, 33))
"""


@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_and_evaluated_by_the_scripts(tmp_path, script):
    draw_folder(tmp_path / "data")
    options = "--data.crop-size 33 --num-steps 2 --batch-size 2 --workers 1".split()
    options += "--num-devices 1 --log-every 1 --save-every 1".split()
    options += ["--model-file", own_network(tmp_path, "build")]
    with open(tmp_path / "mine.py", "a") as file:
        file.write(OWN_PARTS)
    assert script("train_voc", "small", "--data.root", "data", "--workdir", "run", *options) == 0
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert [line["loss"] for line in lines if "loss" in line] == [7.0, 7.0]  # make_loss's
    arrays = [load(tmp_path / "run", checkpoint=step).variables["params"] for step in (1, 2)]
    jax.tree.map(np.testing.assert_array_equal, *arrays)  # by make_optimizer's rate of 0
    assert (tmp_path / "augmented").is_file()  # by a worker process
    assert script("evaluate_voc", "run") == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["network"]["mean_iou"] >= 0
    assert script("predict", "run", "data/JPEGImages/d.jpg", "--output", "out") == 0
    (tmp_path / "mine.py").unlink()
    with pytest.raises(UserError, match="there is no file .*mine.py"):
        load(tmp_path / "run")


def test_what_a_model_file_gives_wrong_is_said_in_a_sentence(tmp_path):
    (tmp_path / "bad.py").write_text("def five(n): return 5\n")
    for name, sentence in {
        f"{tmp_path}/bad.py:five": "gives a int, and a DeepLabV2 was expected",
        f"{tmp_path}/bad.py:six": "has no function 'six'",
        f"{tmp_path}/none.py:five": "there is no file",
    }.items():
        with pytest.raises(UserError, match=sentence):
            segmenter.network({}, 2, model_file=name)


def test_variables_of_another_network_are_refused_by_name():
    other = shallow(ASPP(2, rates=(1,), kernel_size=1), norm="trained")
    variables = train.init_variables(other, jax.random.key(0))
    image = np.zeros((33, 33, 3), np.uint8)
    with pytest.raises(
        UserError, match=r"network has \(.*\) as .*fc8_1/.*, and the variables have \("
    ):
        evaluation.predict(MODEL, variables, image)
    lacking = {**variables, "params": {"trunk": variables["params"]["trunk"]}}
    with pytest.raises(
        UserError, match="as params/head/fc8_1/bias, and the variables have no array"
    ):
        evaluation.predict(other, lacking, image)


@pytest.mark.slow
def test_minimal_py_trains_and_scores(tmp_path):
    draw_folder(tmp_path / "data")
    printed = run_script("minimal.py", "data", 2, cwd=tmp_path)
    assert "update 2 of 2" in printed and "mean IoU" in printed
