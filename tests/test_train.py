import re
from dataclasses import replace
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import losses, optim, start, train
from deeplab_jax.config import Config, CRFLossConfig, completed
from deeplab_jax.data import loader
from deeplab_jax.models import crf_layer
from deeplab_jax.models.deeplab import DeepLabV2, build, is_classifier, weight_name
from deeplab_jax.models.heads import ASPP
from deeplab_jax.models.layers import Conv
from deeplab_jax.ops.resize import resize_bilinear
from deeplab_jax.ops.xla import remat_options
from deeplab_jax.types import IGNORE_LABEL, MEAN_COLOUR, Batch

BATCH = 10
CROP = 33
tiny = partial(build, num_classes=3, width=4, aspp_rates=(1, 2))
resnet = partial(tiny, stage_sizes=(1, 1, 1, 1), scales=(1.0, 0.5), alignment="corners")
trained = partial(resnet, norm="trained", scales=(1.0,))
vgg = partial(
    tiny, backbone="vgg", stage_sizes=(1, 1, 1, 1, 1), head_width=8, norm="none", scales=(1.0,)
)
RESNET, TRAINED, VGG = resnet(), trained(), vgg()
OPTIMIZER = optim.caffe_sgd(optim.poly(0.01, 10))


def draw_crops():
    """Photograph i has 3 i rows of ignored pixels: no two weigh the same."""
    rng = np.random.default_rng(0)
    crops = []
    for i in range(BATCH):
        labels = rng.integers(0, 3, (CROP, CROP), np.uint8)
        labels[: 3 * i] = IGNORE_LABEL
        crops.append((rng.integers(0, 256, (CROP, CROP, 3), np.uint8), labels))
    return crops


def make_step(model, group_size, axis_name=None):
    return train.make_step(
        model, OPTIMIZER, seed=0, batch_size=BATCH, group_size=group_size, axis_name=axis_name
    )


SHALLOW = DeepLabV2(Conv(4, stride=8), ASPP(3, rates=(1,)), scales=(1.0,))


def program_of(step):
    """The update of a batch of two as text, without the addresses of functions."""
    state = jax.eval_shape(lambda v: train.init_state(v, OPTIMIZER), train.variable_shapes(SHALLOW))
    places = (1, 2)
    image, labels = np.zeros((*places, CROP, CROP, 3), np.uint8), np.zeros((*places, CROP, CROP))
    batch = Batch(image, labels.astype(np.uint8), np.zeros(places, np.int32))
    return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(step)(state, batch)))


def test_the_update_of_a_run_has_the_losses_of_its_config():
    weights = np.array([1.0, 2.0, 3.0])
    config = Config(batch_size=2, loss_group_size=None, pixel_loss="focal", batch_loss="dice")
    config = replace(config, seed=5)
    found = start.update_of(config, SHALLOW, OPTIMIZER, class_weights=weights, axis_name=None)
    options = {
        "seed": 5,
        "batch_size": 2,
        "group_size": 2,
        "pixel_loss": partial(losses.focal, class_weights=weights),
        "batch_loss": losses.dice,
    }
    assert program_of(found) == program_of(train.make_step(SHALLOW, OPTIMIZER, **options))
    other = train.make_step(SHALLOW, OPTIMIZER, **{**options, "batch_loss": losses.lovasz_softmax})
    assert program_of(found) != program_of(other)


def test_a_run_trains_with_the_dense_crf_loss_of_its_options():
    given = {"weight": 1e-5, "sigma_xy": 40.0, "sigma_rgb": 7.0, "scale": 0.25}
    config = Config(batch_size=2, batch_loss="dense_crf", crf_loss=CRFLossConfig(**given))
    config = replace(config, model=completed(config.model))
    found = start.update_of(config, SHALLOW, OPTIMIZER, axis_name=None)
    loss = partial(losses.dense_crf, alignment=config.model.alignment, **given)
    options = {"seed": config.seed, "batch_size": 2, "group_size": 1, "batch_loss": loss}
    assert program_of(found) == program_of(train.make_step(SHALLOW, OPTIMIZER, **options))


def test_a_batch_loss_gets_the_inputs_which_are_zero_where_there_is_no_photograph():
    image = np.full((1, 2, CROP, CROP, 3), 200, np.uint8)
    labels = np.zeros(image.shape[:-1], np.uint8)
    image[0, 0, 20:], labels[0, 0, 20:] = MEAN_COLOUR, IGNORE_LABEL  # padding
    seen = []

    def batch_loss(logits, labels, inputs):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), inputs)
        return jnp.zeros(())

    step = train.make_step(
        SHALLOW, OPTIMIZER, seed=0, batch_size=2, group_size=1, batch_loss=batch_loss
    )
    state = train.init_state(train.init_variables(SHALLOW, jax.random.key(0)), OPTIMIZER)
    jax.block_until_ready(jax.jit(step)(state, Batch(image, labels, np.array([[0, -1]]))))
    jax.effects_barrier()
    there = np.zeros((2, CROP, CROP), bool)
    there[0, :20] = True
    np.testing.assert_array_equal((seen[0] != 0).any(-1), there)


@pytest.fixture(scope="module")
def one_update(draw_variables):
    """(model, group size, devices, accumulation) -> state and metrics after one update."""
    crops = draw_crops()

    def run(model, group_size, devices, accumulation):
        places = loader.place_samples(BATCH, devices=devices, accumulation=accumulation)
        step = train.on_devices(
            make_step(model, group_size, train.AXIS),
            jax.local_devices()[:devices],
            compiler_options=remat_options("cpu") if model.trunk.remat else None,
        )
        state = train.init_state(draw_variables(model), OPTIMIZER)
        return jax.device_get(step(state, loader.assemble(crops, places, CROP)))

    return run


@pytest.fixture(scope="module")
def on_one_device(one_update):
    found = {}

    def run(model, group_size):
        if (model, group_size) not in found:
            found[model, group_size] = one_update(model, group_size, 1, 1)
        return found[model, group_size]

    return run


def assert_same_update(found, expected, start):
    (state, metrics), (wanted, wanted_metrics) = found, expected
    assert metrics["loss"] == pytest.approx(wanted_metrics["loss"], rel=1e-5)
    assert metrics["gradient_norm"] == pytest.approx(wanted_metrics["gradient_norm"], rel=1e-5)
    for name in ("params", "batch_stats"):
        jax.tree.map(assert_close, getattr(state, name), getattr(wanted, name))
    # The change itself, which the parameters could hide; sums in another order.
    change, wanted_change = (
        jax.tree.map(jnp.subtract, s.params, start["params"]) for s in (state, wanted)
    )
    jax.tree.map(partial(assert_close, tolerance=1e-3), change, wanted_change)


def assert_close(found, wanted, tolerance=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


slow = pytest.mark.slow
LAYOUTS = [pytest.param(*pair, marks=slow) for pair in [(2, 1), (4, 1), (1, 8), (8, 1)]] + [(2, 4)]


@pytest.mark.parametrize(("devices", "accumulation"), LAYOUTS)
@pytest.mark.parametrize(("model", "group_size"), [(RESNET, 1), (VGG, BATCH)], ids=["msc", "vgg"])
def test_an_update_does_not_depend_on_where_photographs_lie(
    model, group_size, devices, accumulation, one_update, on_one_device, draw_variables
):
    found = one_update(model, group_size, devices, accumulation)
    assert_same_update(found, on_one_device(model, group_size), draw_variables(model))


@pytest.mark.parametrize(("devices", "accumulation"), [pytest.param(4, 1, marks=slow), (2, 4)])
@pytest.mark.parametrize(
    ("model", "group_size"), [pytest.param(RESNET, BATCH, marks=slow), (VGG, 2)], ids=["msc", "vgg"]
)
def test_an_update_does_not_depend_on_positions_under_the_other_normalisation(
    model, group_size, devices, accumulation, one_update, on_one_device, draw_variables
):
    found = one_update(model, group_size, devices, accumulation)
    assert_same_update(found, on_one_device(model, group_size), draw_variables(model))


def test_normalisations_are_different_losses(on_one_device):
    losses = [on_one_device(VGG, group_size)[1]["loss"] for group_size in (2, BATCH)]
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


def test_dropout_is_on_in_training(on_one_device, one_update):
    _, dropped = on_one_device(VGG, BATCH)
    _, whole = one_update(vgg(dropout=0.0), BATCH, 1, 1)
    assert abs(dropped["loss"] - whole["loss"]) > 1e-3 * whole["loss"]


@pytest.mark.parametrize("devices", [pytest.param(4, marks=slow), 8])
def test_a_trained_batch_norm_has_the_statistics_of_the_photographs_alone(
    devices, one_update, on_one_device, draw_variables
):
    """10 photographs on 4 and 8 devices: 2 and 6 crops are there to fill up."""
    found = one_update(TRAINED, BATCH, devices, 1)
    assert_same_update(found, on_one_device(TRAINED, BATCH), draw_variables(TRAINED))


@pytest.mark.parametrize(
    "network", [vgg, pytest.param(trained, marks=slow)], ids=["vgg", "trained"]
)
def test_rematerialisation_changes_no_update(network, one_update, on_one_device, draw_variables):
    model = network()
    found = one_update(network(remat=True), BATCH, 2, 1)
    assert_same_update(found, on_one_device(model, BATCH), draw_variables(model))


@pytest.mark.parametrize(
    ("network", "stages"), [pytest.param(resnet, 4, marks=slow), (vgg, 5)], ids=["resnet", "vgg"]
)
def test_rematerialisation_saves_memory(network, stages, draw_variables):
    network = partial(network, scales=(1.0,), stage_sizes=(3,) * stages)
    inputs = jnp.zeros((1, 129, 129, 3))

    def memory(model):
        loss = jax.grad(lambda v: model.apply(v, inputs).sum())
        program = jax.jit(loss).lower(draw_variables(model))
        options = remat_options("cpu")
        return program.compile(compiler_options=options).memory_analysis().temp_size_in_bytes

    assert memory(network(remat=True)) < 0.8 * memory(network())


def test_a_trained_batch_norm_moves_its_running_statistics(on_one_device, draw_variables):
    before = draw_variables(TRAINED)["batch_stats"]["trunk"]["conv1"]
    after = on_one_device(TRAINED, BATCH)[0].batch_stats["trunk"]["conv1"]
    assert (after["mean"] != before["mean"]).any()
    assert (after["var"] != before["var"]).any()


def test_a_frozen_batch_norm_is_not_updated(on_one_device, draw_variables):
    variables = draw_variables(RESNET)
    state, _ = on_one_device(RESNET, 1)
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), state.params, variables["params"])
    assert all(jax.tree.leaves(moved))


@pytest.fixture(scope="module")
def single_device_step(draw_variables):
    """The step as it is written, without pmap; photographs of one device have one axis less."""
    model = VGG
    places = loader.place_samples(BATCH, devices=1, accumulation=1)
    batch = jax.tree.map(lambda a: a[0], loader.assemble(draw_crops(), places, CROP))
    state = train.init_state(draw_variables(model), OPTIMIZER)
    return jax.jit(make_step(model, BATCH)), state, batch


def test_an_update_without_labelled_pixels_has_loss_0_and_gradient_0(single_device_step):
    step, state, batch = single_device_step
    batch = replace(batch, labels=np.full_like(batch.labels, IGNORE_LABEL))
    after, metrics = step(state, batch)
    assert metrics["loss"] == 0
    assert metrics["gradient_norm"] == 0
    kernel = state.params["trunk"]["conv1_1"]["kernel"]
    expected = kernel * (1 - 0.01 * 5e-4)  # decay alone, at the rate of the first update
    np.testing.assert_allclose(after.params["trunk"]["conv1_1"]["kernel"], expected, rtol=1e-6)


@pytest.mark.parametrize("model", [RESNET, VGG], ids=["resnet", "vgg"])
def test_a_fresh_head_starts_as_in_a_whole_network_and_nothing_else_is_drawn(model):
    key = jax.random.key(3)
    whole = jax.tree_util.tree_leaves_with_path(train.init_variables(model, key))
    head = jax.tree.leaves(train.init_head(model, key))
    assert len(head) == len(whole)
    for (path, expected), found in zip(whole, head, strict=True):
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


def test_fit_runs_every_batch_and_reports_each_update_by_its_number():
    def step(state, batch):
        return state.replace(step=state.step + batch.image), {"loss": jnp.asarray(batch.image)}

    calls = []
    state = train.fit(
        step,
        train.TrainState(100, None, None, None, 0, 0),
        [Batch(image=i, labels=None, sample=None) for i in (1, 2, 3)],
        start=5,
        after_step=lambda number, state, metrics: calls.append(
            (number, state.step, int(metrics["loss"]))
        ),
    )
    assert state.step == 106
    assert calls == [(6, 101, 1), (7, 103, 2), (8, 106, 3)]


@pytest.mark.parametrize("model", [RESNET, VGG, TRAINED], ids=["msc", "vgg", "trained"])
def test_the_training_step_lowers_for_cpu_cuda_and_tpu(model, draw_variables):
    places = loader.place_samples(BATCH, devices=1, accumulation=2)
    batch = jax.tree.map(lambda a: a[0], loader.assemble(draw_crops(), places, CROP))
    state = train.init_state(draw_variables(model), OPTIMIZER)
    platforms = ("cpu", "cuda", "tpu")
    step = jax.export.export(jax.jit(make_step(model, BATCH)), platforms=platforms)
    assert step(state, batch).platforms == platforms


@pytest.mark.parametrize("model", [RESNET, VGG], ids=["msc", "vgg"])
@pytest.mark.parametrize("size", [(33, 33), (65, 33)])
def test_map_sizes_are_those_of_the_network(model, size):
    rows, columns = (-(-n // 8) for n in size)
    expected = {
        RESNET: [(rows, columns)] * 2 + [(-(-rows // 2), -(-columns // 2))],
        VGG: [(rows, columns)],
    }
    assert train.map_sizes(model, train.variable_shapes(model), size) == expected[model]


def test_a_crf_without_weights_leaves_the_enlarged_scores():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(2, 3, 4, 5)), jnp.float32)
    image = rng.integers(0, 256, (2, 17, 25, 3), np.uint8)
    nothing = dict.fromkeys(crf_layer.WEIGHTS, jnp.float32(0))
    enlarged = resize_bilinear(scores, (17, 25), alignment="corners")
    found = jax.jit(partial(crf_layer.log_marginals, num_iterations=2))(image, enlarged, nothing)
    np.testing.assert_allclose(found, jax.nn.log_softmax(enlarged), atol=1e-5)


@slow
def test_a_network_that_ends_in_a_crf_learns_with_the_weights_of_its_kernels(draw_variables):
    labels = np.zeros((2, CROP, CROP), np.uint8)
    labels[:, :, 16:] = 1
    noise = np.random.default_rng(0).integers(0, 30, (2, CROP, CROP, 3))
    images = (noise + 120 * labels[..., None]).astype(np.uint8)
    crops = list(zip(images, labels, strict=True))
    places = loader.place_samples(2, devices=1, accumulation=1)
    batch = jax.tree.map(lambda x: x[0], loader.assemble(crops, places, CROP))
    model = crf_layer.WithCRF(TRAINED, num_iterations=2)
    options = {"seed": 0, "batch_size": 2, "group_size": 2}
    step = jax.jit(train.make_step(model, OPTIMIZER, **options))
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
    broken.params["trunk"]["conv1_1"]["bias"] = jnp.full(4, jnp.inf)
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
    kernels = (s.params["trunk"]["conv1_1"]["kernel"] for s in (healed, state))
    assert not np.array_equal(*kernels)


def test_fit_ends_where_it_is_told_to_and_gives_up_what_is_not_finished():
    def step(state, batch):
        return state.replace(step=state.step + 1), {"loss": jnp.asarray(batch.image)}

    def run(after_step, finished):
        state = train.TrainState(0, None, None, None, 0, 0)
        batches = [Batch(image=i, labels=None, sample=None) for i in range(9)]
        options = {"after_step": after_step, "finished": finished}
        return train.fit(step, state, batches, start=0, **options).step

    assert run(lambda number, *_: number == 4, lambda values: True) == 4
    assert run(lambda *_: None, lambda values: bool(values["loss"] < 6)) == 6


def test_padding_of_a_crop_is_exactly_the_mean_of_the_weights():
    """(103.53, 116.28, 123.675) is torchvision's mean, which no uint8 colour is."""
    image = np.full((1, 2, 3, 3), MEAN_COLOUR, np.uint8)
    image[0, 0, 1] = 0
    labels = np.array([[[255, 255, 4], [255, 255, 255]]])
    mean = (103.53, 116.28, 123.675)
    found = np.asarray(train.crop_inputs(jnp.asarray(image), jnp.asarray(labels), mean))[0]
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_array_equal(found[0, 0], 0)
    np.testing.assert_allclose(found[0, 1], -np.array(mean), rtol=1e-6)  # a photograph's own
    np.testing.assert_allclose(found[0, 2], (0.47, 0.72, -0.675), rtol=1e-4)  # not void
