"""The averaged parameters (EMA) of a run: saved, resumed, skipped with the update, loaded."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs_with_faults as faults

from deeplab_jax import checkpoints, optim, segmenter, train, workdir
from deeplab_jax.config import ModelConfig, completed
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import Batch, UserError
from deeplab_jax.weights import files

MODEL = ModelConfig(
    stage_sizes=(1, 1, 1, 1), width=1, norm="trained", aspp_rates=(1, 2), scales=(1.0,)
)
CONFIG = replace(PRESETS["small"], model=completed(MODEL), num_steps=10, ema_decay=0.7)


def draw_batch(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (1, 2, 17, 17, 3), np.uint8)
    labels = rng.integers(0, 2, (1, 2, 17, 17), np.uint8)
    return Batch(image, labels, np.arange(2, dtype=np.int32)[None])


@pytest.fixture(scope="module")
def updates():
    """The step, and the state after 0 to 4 updates of different batches."""
    model = segmenter.trained_network(CONFIG, 2)
    _, optimizer = segmenter.solver_of(CONFIG)
    step = jax.jit(train.make_step(model, optimizer, seed=0, batch_size=2, group_size=2))
    states = [train.init_state(train.init_variables(model, jax.random.key(0)), optimizer)]
    for number in range(4):
        states.append(step(states[-1], draw_batch(number))[0])
    return step, states


@pytest.fixture
def saved(updates, tmp_path):
    """A work folder with the state after two updates."""
    config = replace(CONFIG, workdir=tmp_path)
    workdir.record_run(tmp_path, config, config, ("a", "b"), photographs="p", accumulation=1)
    with checkpoints.Saver(tmp_path / workdir.CHECKPOINTS, keep_newest=1) as saver:
        workdir.save(saver, updates[1][2])
        saver.wait()
    return tmp_path


def assert_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_run_that_goes_on_has_the_same_average_to_the_bit(updates, saved):
    step, states = updates
    state = workdir.restore(saved, states[0])
    assert_equal(state, jax.device_get(states[2]))
    for number in (2, 3):
        state, _ = step(state, draw_batch(number))
    assert_equal(state, states[4])
    average = optim.average_of(state.optimizer)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), average, state.params)
    assert any(jax.tree.leaves(different))


def test_a_skipped_update_leaves_the_average_and_its_weight(updates):
    step, states = updates
    bad = states[2].replace(params=jax.tree.map(lambda p: p * jnp.nan, states[2].params))
    after, values = step(bad, draw_batch(2))
    assert values["skipped"] == 1
    before = states[2].optimizer
    assert_equal(after.optimizer.average, before.average)
    assert after.optimizer.share == before.share < 1


def test_the_average_is_loaded_from_the_checkpoint(updates, saved):
    averaged = segmenter.load(saved, average=True)
    average = optim.average_of(updates[1][2].optimizer)
    assert_equal(averaged.variables["params"], average)
    raw = segmenter.load(saved).variables
    assert_equal(raw["params"], updates[1][2].params)
    assert_equal(averaged.variables["batch_stats"], raw["batch_stats"])


def test_where_there_is_no_average_that_is_said(saved, tmp_path):
    model = segmenter.load(saved)
    files.write(
        tmp_path / "w.safetensors", model.variables, {"model": {}, "class_names": ["a", "b"]}
    )
    with pytest.raises(UserError, match="w.safetensors is no work folder"):
        segmenter.load(tmp_path / "w.safetensors", average=True)
    record = json.loads((saved / "config.json").read_text())
    record["config"]["ema_decay"] = 0.0
    (saved / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="was trained without --ema-decay"):
        segmenter.load(saved, average=True)


@pytest.mark.slow
def test_the_scripts_score_and_use_the_average(tmp_path, script, capsys):
    faults.draw_data(tmp_path / "data")
    options = ("--num-steps", 4, "--evaluate-every", 2, "--ema-decay", 0.9)
    options += ("--pixel-loss", "focal", "--batch-loss", "lovasz", "--class-balance", 0.5)
    out = faults.run(tmp_path, "run", *options)
    assert "mean IoU of the averaged parameters: " in out
    score = json.loads((tmp_path / "run/score.json").read_text())
    scored = {r["step"]: r for r in workdir.read_metrics(tmp_path / "run") if "mean_iou" in r}
    assert scored.keys() == {2, 4}
    assert score["ema"]["mean_iou"] == scored[4]["ema_mean_iou"]
    assert score["mean_iou"] == scored[4]["mean_iou"]
    assert script("evaluate_voc", "run", "--average") == 0
    report = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert report["network"]["mean_iou"] == pytest.approx(score["ema"]["mean_iou"], abs=1e-6)
    photograph = sorted((tmp_path / "data/JPEGImages").iterdir())[0]
    assert script("predict", "run", photograph, "--average", "--output", "out") == 0
    assert script("predict", "run", photograph, "--output", "out") == 2
    assert "holds predictions with average True" in capsys.readouterr().err
