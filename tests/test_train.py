"""Updates on any number of devices, the averaged parameters of a run, networks that learn."""

import json
from dataclasses import replace
from functools import cache, partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import runs_with_faults as faults
from tiny_networks import resnet, shallow, vgg

from deeplab_jax import checkpoints, losses, optim, segmenter, start, train, workdir
from deeplab_jax.config import Config, CRFLossConfig, ModelConfig, completed
from deeplab_jax.data import builders, loader
from deeplab_jax.data.folders import Place
from deeplab_jax.models import crf_layer
from deeplab_jax.models.deeplab import build, is_classifier, weight_name
from deeplab_jax.models.heads import FullyConnectedASPP
from deeplab_jax.models.layers import Mode
from deeplab_jax.ops.resize import resize_bilinear
from deeplab_jax.ops.xla import remat_options
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import IGNORE_LABEL, MEAN_COLOUR, Batch, UserError
from deeplab_jax.weights import files

BATCH = 10
CROP = 33
SHALLOW = shallow()
FROZEN_MSC = shallow(norm="frozen", scales=(1.0, 0.5), alignment="corners")
TRAINED = shallow(norm="trained")
DROPPING = shallow(FullyConnectedASPP(3, rates=(1, 2), width=8))
RESNET, VGG = resnet(scales=(1.0, 0.5), alignment="corners"), vgg()
OPTIMIZER = optim.caffe_sgd(optim.poly(0.01, 10))
slow = pytest.mark.slow


def draw_crops():
    """Photograph i has 3 i rows of ignored pixels: no two weigh the same."""
    rng = np.random.default_rng(0)
    crops = []
    for i in range(BATCH):
        labels = rng.integers(0, 3, (CROP, CROP), np.uint8)
        labels[: 3 * i] = IGNORE_LABEL
        crops.append((rng.integers(0, 256, (CROP, CROP, 3), np.uint8), labels))
    return crops


def batch_of(crops, accumulation=1):
    """For a step without pmap, whose arrays have one axis less."""
    places = loader.place_samples(len(crops), devices=1, accumulation=accumulation)
    return jax.tree.map(lambda leaf: leaf[0], loader.assemble(crops, places, CROP))


def make_step(model, *, batch_size=BATCH, group_size=1, seed=0, **options):
    solver = {"seed": seed, "batch_size": batch_size, "group_size": group_size}
    return train.make_step(model, OPTIMIZER, **solver, **options)


WEIGHTS = np.array([1.0, 2.0, 3.0])
CRF_LOSS = {"weight": 1e-5, "sigma_xy": 40.0, "sigma_rgb": 7.0, "scale": 0.25}


@pytest.mark.parametrize(
    ("fields", "functions"),
    [
        ({}, (losses.cross_entropy, None)),
        ({"pixel_loss": "focal", "batch_loss": "dice"}, (losses.focal, losses.dice)),
        ({"batch_loss": "lovasz"}, (losses.cross_entropy, losses.lovasz_softmax)),
        ({"batch_loss": "dense_crf"}, (losses.cross_entropy, losses.dense_crf)),
    ],
)
def test_the_update_of_a_run_has_the_losses_of_its_config(monkeypatch, fields, functions):
    monkeypatch.setattr(train, "make_step", partial)  # whose keywords can be read
    config = Config(seed=5, batch_size=2, crf_loss=CRFLossConfig(**CRF_LOSS), **fields)
    config = replace(config, model=completed(config.model))
    found = start.update_of(config, SHALLOW, OPTIMIZER, class_weights=WEIGHTS).keywords
    pixel_loss, batch_loss = found["pixel_loss"], found["batch_loss"]
    assert (pixel_loss.func, getattr(batch_loss, "func", batch_loss)) == functions
    assert pixel_loss.keywords["class_weights"] is WEIGHTS
    if config.batch_loss == "dense_crf":
        assert batch_loss.keywords == {"alignment": config.model.alignment, **CRF_LOSS}
    assert (found["seed"], found["batch_size"], found["group_size"]) == (5, 2, 1)
    whole = start.update_of(replace(config, loss_group_size=None), SHALLOW, OPTIMIZER)
    assert whole.keywords["group_size"] == 2


def test_a_batch_loss_gets_the_inputs_which_are_zero_where_there_is_no_photograph():
    image = np.full((1, 2, CROP, CROP, 3), 200, np.uint8)
    labels = np.zeros(image.shape[:-1], np.uint8)
    image[0, 0, 10:] = MEAN_COLOUR  # a photograph's own
    labels[0, 0, 20:] = IGNORE_LABEL  # padding
    seen = []

    def batch_loss(logits, labels, inputs):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), inputs)
        return jnp.zeros(())

    step = jax.jit(make_step(SHALLOW, batch_size=2, batch_loss=batch_loss))
    state = train.init_state(train.init_variables(SHALLOW, jax.random.key(0)), OPTIMIZER)
    jax.block_until_ready(step(state, Batch(image, labels, np.array([[0, -1]]))))
    jax.effects_barrier()
    there = np.zeros((2, CROP, CROP), bool)
    there[0, :20] = True
    np.testing.assert_array_equal((seen[0] != 0).any(-1), there)


@pytest.fixture(scope="module")
def one_update(draw_variables):
    """(model, group size, devices, accumulation) -> state and metrics after one update."""

    @cache
    def run(model, group_size, devices=1, accumulation=1):
        places = loader.place_samples(BATCH, devices=devices, accumulation=accumulation)
        step = make_step(model, group_size=group_size, axis_name=train.AXIS)
        options = remat_options("cpu") if devices > 1 else None  # as of a run with --remat
        step = train.on_devices(step, jax.local_devices()[:devices], compiler_options=options)
        state = train.init_state(draw_variables(model), OPTIMIZER)
        return jax.device_get(step(state, loader.assemble(draw_crops(), places, CROP)))

    return run


def assert_same_update(found, expected, start):
    (state, metrics), (wanted, wanted_metrics) = found, expected
    for name in ("loss", "gradient_norm"):
        assert metrics[name] == pytest.approx(wanted_metrics[name], rel=1e-5)
    for name in ("params", "batch_stats"):
        jax.tree.map(assert_close, getattr(state, name), getattr(wanted, name))
    # The change itself, which the parameters could hide; sums in another order.
    changes = (jax.tree.map(jnp.subtract, s.params, start["params"]) for s in (state, wanted))
    jax.tree.map(partial(assert_close, tolerance=1e-3), *changes)


def assert_close(found, wanted, tolerance=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


WHOLE = [(RESNET, 1), (RESNET, BATCH), (VGG, 2), (VGG, BATCH)]
LAYOUTS = [(2, 1), (4, 1), (1, 8), (8, 1)]


@pytest.mark.parametrize(
    ("model", "group_size", "devices", "accumulation"),
    [
        (FROZEN_MSC, 1, 2, 4),
        (DROPPING, 2, 2, 4),
        (DROPPING, BATCH, 4, 1),
        (TRAINED, BATCH, 8, 1),  # 6 crops are there to fill up
        pytest.param(resnet(norm="trained"), BATCH, 4, 1, marks=slow),
        *(pytest.param(*pair, *layout, marks=slow) for pair in WHOLE for layout in LAYOUTS),
    ],
)
def test_an_update_does_not_depend_on_where_photographs_lie(
    model, group_size, devices, accumulation, one_update, draw_variables
):
    """The statistics of a trained batch norm are those of the photographs alone, too."""
    found = one_update(model, group_size, devices, accumulation)
    assert_same_update(found, one_update(model, group_size), draw_variables(model))


def test_normalisations_and_dropout_change_the_loss(one_update):
    whole = DROPPING.clone(head=DROPPING.head.clone(dropout=0.0))
    cases = [(DROPPING, BATCH), (DROPPING, 2), (whole, BATCH)]
    expected, *others = [float(one_update(*case)[1]["loss"]) for case in cases]
    assert all(abs(other - expected) > 1e-3 * expected for other in others)


@pytest.mark.parametrize(
    ("network", "stages"),
    [pytest.param(partial(resnet, norm="trained"), 4, marks=slow), (vgg, 5)],
    ids=["resnet", "vgg"],
)
def test_rematerialisation_saves_memory_and_changes_no_gradient(network, stages, draw_variables):
    """In float64: float32's rounding, through so many layers, is another on each make of CPU."""
    network = partial(network, stage_sizes=(3,) * stages, dtype="float64")
    drawn = draw_variables(network())

    def compiled(remat):
        model = network(remat=remat)
        options = {"method": "score_maps", "mutable": ["batch_stats"]}

        def loss(variables):
            (scores,), _ = model.apply(variables, inputs, Mode(train=True), **options)
            return jnp.square(scores).mean()

        program = jax.jit(jax.grad(loss)).lower(variables)
        program = program.compile(compiler_options=remat_options("cpu"))
        return program(variables), program.memory_analysis().temp_size_in_bytes

    with jax.enable_x64(True):
        inputs = jnp.asarray(np.random.default_rng(0).normal(size=(1, 129, 129, 3)))
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), drawn)
        (found, memory), (expected, whole) = compiled(True), compiled(False)
    assert memory < 0.8 * whole
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_close(a, b, tolerance=1e-9)


def test_an_update_moves_every_parameter_and_no_statistics_but_those_of_a_trained_norm(
    one_update, draw_variables
):
    for model, moves in ((FROZEN_MSC, False), (TRAINED, True)):
        before, (state, _) = draw_variables(model), one_update(model, BATCH)
        for name, expected in (("params", True), ("batch_stats", moves)):
            pairs = zip(*map(jax.tree.leaves, (getattr(state, name), before[name])), strict=True)
            assert {bool((a != b).any()) for a, b in pairs} == {expected}


@pytest.fixture(scope="module")
def single_device_step(draw_variables):
    state = train.init_state(draw_variables(DROPPING), OPTIMIZER)
    return jax.jit(make_step(DROPPING, group_size=BATCH)), state, batch_of(draw_crops())


def test_an_update_without_labelled_pixels_has_loss_0_and_gradient_0(single_device_step):
    step, state, batch = single_device_step
    batch = replace(batch, labels=np.full_like(batch.labels, IGNORE_LABEL))
    after, metrics = step(state, batch)
    assert metrics["loss"] == 0
    assert metrics["gradient_norm"] == 0
    expected = state.params["trunk"]["kernel"] * (1 - 0.01 * 5e-4)  # decay alone, at the first rate
    np.testing.assert_allclose(after.params["trunk"]["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize("model", [TRAINED, DROPPING])
def test_a_fresh_head_starts_as_in_a_whole_network_and_nothing_else_is_drawn(model):
    key = jax.random.key(3)
    whole = jax.tree_util.tree_leaves_with_path(train.init_variables(model, key))
    for (path, expected), found in zip(
        whole, jax.tree.leaves(train.init_last_layer(model, key)), strict=True
    ):
        assert isinstance(found, jax.Array) == is_classifier(weight_name(path))
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        if isinstance(found, jax.Array):
            np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_an_update_is_counted_and_draws_its_dropout_from_the_seed_and_its_number(
    single_device_step,
):
    step, state, batch = single_device_step
    after, first = step(state, batch)
    _, again = step(state, batch)
    _, second = step(state.replace(step=after.step), batch)
    assert after.step == 1
    assert first["loss"] == again["loss"]
    assert first["loss"] != second["loss"]


def add_image(state, batch):
    """A step that adds the batch's number to the count of updates."""
    return state.replace(step=state.step + batch.image), {"loss": jnp.asarray(batch.image)}


def fit(images, after_step, finished=lambda values: True, start=0):
    state = train.TrainState(100, None, None, None, 0, 0)
    batches = [Batch(image=i, labels=None, sample=None) for i in images]
    calls = {"after_step": after_step, "finished": finished, "start": start}
    return train.fit(add_image, state, batches, **calls).step


def test_fit_reports_each_update_by_its_number_ends_where_it_is_told_and_gives_up_the_unfinished():
    calls = []

    def after_step(number, state, metrics):
        calls.append((number, state.step, int(metrics["loss"])))

    assert fit((1, 2, 3), after_step, start=5) == 106
    assert calls == [(6, 101, 1), (7, 103, 2), (8, 106, 3)]
    assert fit([1] * 9, lambda number, *_: number == 4) == 104
    assert fit(range(9), lambda *_: None, lambda values: bool(values["loss"] < 4)) == 106


@pytest.mark.parametrize("model", [resnet(norm="trained"), VGG], ids=["resnet", "vgg"])
def test_the_training_step_lowers_for_cpu_cuda_and_tpu(model, draw_variables):
    batch = batch_of(draw_crops(), accumulation=2)
    state = train.init_state(draw_variables(model), OPTIMIZER)
    platforms = ("cpu", "cuda", "tpu")
    step = jax.export.export(jax.jit(make_step(model)), platforms=platforms)
    assert step(state, batch).platforms == platforms


def test_a_crf_without_weights_leaves_the_enlarged_scores():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    image = rng.integers(0, 256, (2, 17, 25, 3), np.uint8)
    nothing = dict.fromkeys(crf_layer.WEIGHTS, jnp.float32(0))
    enlarged = resize_bilinear(scores, (17, 25), alignment="corners")
    found = jax.jit(partial(crf_layer.log_marginals, num_iterations=1))(image, enlarged, nothing)
    np.testing.assert_allclose(found, jax.nn.log_softmax(enlarged), atol=1e-5)


@slow
def test_a_network_that_ends_in_a_crf_learns_with_the_weights_of_its_kernels(draw_variables):
    labels = np.zeros((2, CROP, CROP), np.uint8)
    labels[:, :, 16:] = 1
    noise = np.random.default_rng(0).integers(0, 30, (2, CROP, CROP, 3))
    images = (noise + 120 * labels[..., None]).astype(np.uint8)
    batch = batch_of(list(zip(images, labels, strict=True)))
    model = crf_layer.WithCRF(TRAINED, num_iterations=2)
    step = jax.jit(make_step(model, batch_size=2, group_size=2))
    state = train.init_state(draw_variables(model), OPTIMIZER)
    start, seen = state.params["crf"], []
    for _ in range(6):
        state, values = step(state, batch)
        seen.append(float(values["loss"]))
    assert seen[-1] < 0.9 * seen[0]
    assert all(state.params["crf"][name] != start[name] for name in crf_layer.WEIGHTS)


def test_an_update_that_is_not_finite_is_counted_and_changes_nothing_else(single_device_step):
    step, state, batch = single_device_step
    broken = jax.tree.map(lambda leaf: leaf, state)
    broken.params["trunk"]["bias"] = jnp.full(4, jnp.inf)
    after, values = step(broken, batch)
    assert not np.isfinite(values["loss"])
    assert (after.step, after.skipped, after.skipped_in_a_row) == (1, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, after.params, broken.params)
    for old, new in zip(*map(jax.tree.leaves, (broken.optimizer, after.optimizer)), strict=True):
        is_count = jnp.issubdtype(new.dtype, jnp.integer)  # of the schedule, which goes on
        np.testing.assert_array_equal(new, old + 1 if is_count else old)
    twice, values = step(after, batch)
    assert values["skipped"] == values["skipped_in_a_row"] == 2
    healed, values = step(twice.replace(params=state.params), batch)
    assert (values["skipped"], values["skipped_in_a_row"]) == (2, 0)
    kernels = (s.params["trunk"]["kernel"] for s in (healed, state))
    assert not np.array_equal(*kernels)


@slow
@pytest.mark.data
@pytest.mark.parametrize("preset", ["vgg16_aspp_l", "resnet101_aspp_msc"])
def test_the_network_learns_ten_photographs(preset, data_folder, tmp_path):
    """From scratch, 161-pixel crops: the loss falls below half the entropy of the classes."""
    config = PRESETS[preset].model
    place = Place(data_folder / "voc2012_animals", tmp_path)
    train_split = builders.open_dataset(place, ["train"]).splits["train"]
    options = {"batch_size": 10, "crop_size": 161, "scales": (0.5,), "flip": False}
    batches = loader.batches(train_split, seed=0, start=0, stop=1, **options)
    batch = jax.tree.map(lambda leaf: leaf[0], next(batches))
    sizes = {"stage_sizes": config.stage_sizes, "scales": config.scales}
    model = build(21, backbone=config.backbone, norm="trained", **sizes)
    # ResNet's classifier sums 4 x 9 x 2048 products a logit: at the trunk's rate it overshoots.
    multiplier = 1.0 if config.backbone == "vgg" else 0.02
    optimizer = optim.caffe_sgd(lambda step: 5e-3, classifier_multiplier=multiplier)
    state = train.init_state(train.init_variables(model, jax.random.key(0)), optimizer)
    update = train.make_step(model, optimizer, seed=0, batch_size=10, group_size=10)
    step = jax.jit(update, donate_argnums=0)
    sizes = train.map_sizes(model, train.variable_shapes(model), (161, 161))
    targets = losses.label_maps(jnp.asarray(batch.labels[0]), sizes, alignment="half_pixel")
    goal = 0.5 * sum(map(entropy, targets))
    history = []
    while len(history) < 60 and not (history and history[-1] < goal):
        state, values = step(state, batch)
        history.append(float(values["loss"]))
        print(f"{preset} update {len(history)}: loss {history[-1]:.3f}, goal {goal:.3f}")
    assert history[-1] < goal


def entropy(labels) -> float:
    """Of the class frequencies of the labelled pixels, in nats."""
    labels = np.asarray(labels)
    counts = np.bincount(labels[labels != IGNORE_LABEL])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


MODEL = ModelConfig(stage_sizes=(1,) * 4, width=1, norm="trained", aspp_rates=(1, 2), scales=(1.0,))
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
    header = {"model": {}, "class_names": ["a", "b"]}
    files.write(tmp_path / "w.safetensors", segmenter.load(saved).variables, header)
    with pytest.raises(UserError, match="w.safetensors is no work folder"):
        segmenter.load(tmp_path / "w.safetensors", average=True)
    config = saved / "config.json"
    config.write_text(config.read_text().replace('"ema_decay": 0.7', '"ema_decay": 0.0'))
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
