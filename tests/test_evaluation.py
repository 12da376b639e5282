from dataclasses import replace
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from deeplab_jax import crf, evaluation, tiling
from deeplab_jax.crf import kernels
from deeplab_jax.models.deeplab import DeepLabV2, build, make_inputs
from deeplab_jax.models.heads import ASPP
from deeplab_jax.models.layers import Conv
from deeplab_jax.types import IGNORE_LABEL, UserError

MODEL = build(
    num_classes=3,
    stage_sizes=(1, 1, 1, 1),
    width=4,
    aspp_rates=(1, 2),
    scales=(1.0,),
    alignment="half_pixel",
)
CORNERS = MODEL.clone(alignment="corners")


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(MODEL)


def photograph(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def softmax(logits):
    likelihoods = np.exp(logits - logits.max(-1, keepdims=True))
    return likelihoods / likelihoods.sum(-1, keepdims=True)


def logits_of(model, variables, inputs):
    return np.asarray(jax.jit(model.apply)(variables, jnp.asarray(inputs)[None])[0])


@pytest.mark.parametrize("model", [MODEL, CORNERS], ids=["half_pixel", "corners"])
def test_probabilities_are_the_softmax_of_the_enlarged_scores(model, variables):
    image = photograph(33, 41)
    logits = logits_of(model, variables, make_inputs(image))
    expected = softmax(reference.resize(logits, (33, 41), alignment=model.alignment))
    probs = evaluation.predict(model, variables, image)
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-3)  # logits are in the tens
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 50), (40, 7)])
@pytest.mark.parametrize("model", [MODEL, CORNERS], ids=["half_pixel", "corners"])
def test_photographs_of_any_size_are_predicted_at_their_own(model, variables, height, width):
    probs = evaluation.predict(model, variables, photograph(height, width))
    assert probs.shape == (height, width, 3)
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)


def test_padding_is_the_mean_pixel_below_and_on_the_right(variables):
    image = photograph(20, 30)
    inputs = np.zeros((41, 41, 3), np.float32)
    inputs[:20, :30] = make_inputs(image)
    logits = logits_of(MODEL, variables, inputs)
    expected = softmax(reference.resize(logits, (41, 41), alignment="half_pixel"))[:20, :30]
    probs = evaluation.predict(MODEL, variables, image, pad_to=41)
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-3)


def test_nothing_depends_on_what_lies_in_the_padding(variables):
    black, noise = np.zeros((1, 33, 33, 3), np.uint8), photograph(33, 33)[None].copy()
    black[:, :20, :25] = noise[:, :20, :25]
    sizes = jnp.array([[20, 25]])
    found = [
        evaluation.batch_outputs(MODEL, variables, jnp.asarray(image), sizes)
        for image in (black, noise)
    ]
    np.testing.assert_array_equal(*found)


def test_a_flipped_photograph_has_flipped_probabilities_when_averaged_over_the_flip(variables):
    image = photograph(33, 33)
    once = evaluation.predict(MODEL, variables, image)
    both, mirrored = (
        evaluation.predict(MODEL, variables, view, flip=True) for view in (image, image[:, ::-1])
    )
    np.testing.assert_allclose(both[:, ::-1], mirrored, rtol=0, atol=1e-4)
    other = evaluation.predict(MODEL, variables, image[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(both, (once + other) / 2, rtol=0, atol=1e-4)
    assert np.abs(once - both).max() > 1e-3


def test_options_may_come_as_an_object_or_by_their_names(draw_variables):
    model = DeepLabV2(Conv(4, stride=8), ASPP(3, rates=(1,)), scales=(1.0,))
    run = partial(evaluation.predict, model, draw_variables(model), photograph(17, 17))
    expected = run(pad_to=25, flip=True)
    options = evaluation.InferenceOptions(pad_to=25, flip=True)
    np.testing.assert_array_equal(run(options), expected)
    np.testing.assert_array_equal(run(replace(options, flip=False), flip=True), expected)
    assert np.abs(run(replace(options, flip=False)) - expected).max() > 1e-3
    with pytest.raises(TypeError, match="mirror"):
        run(mirror=True)


def test_extra_scales_average_probabilities(variables):
    image = photograph(33, 33)
    inputs = np.asarray(make_inputs(image))
    sides = [(i + 0.5) / 1.25 - 0.5 for i in range(int(33 * 1.25))]
    views = [inputs, reference.bilinear(inputs, sides, sides).astype(np.float32)]
    expected = [
        softmax(reference.resize(logits_of(MODEL, variables, v), (33, 33), alignment="half_pixel"))
        for v in views
    ]
    probs = evaluation.predict(MODEL, variables, image, scales=(1.0, 1.25))
    np.testing.assert_allclose(probs, np.mean(expected, 0), rtol=0, atol=2e-3)


def test_tiled_probabilities_are_the_whole_ones_where_one_tile_covers_the_photograph(variables):
    image = photograph(30, 25)
    whole = evaluation.predict(MODEL, variables, image)
    np.testing.assert_array_equal(evaluation.predict(MODEL, variables, image, tile=30), whole)
    np.testing.assert_array_equal(evaluation.predict(MODEL, variables, image, tile=99), whole)
    ((_, found),) = evaluation.outputs_of(
        MODEL, variables, [(0, image)], pad_to=None, tile=30, what="probs"
    )
    np.testing.assert_array_equal(found, whole)


def test_tiles_fade_into_each_other_where_they_meet(variables):
    image = photograph(32, 48)
    found = evaluation.predict(MODEL, variables, image, tile=32, overlap=0.5)
    by_area = evaluation.predict(MODEL, variables, image, max_pixels=32 * 32, overlap=0.5)
    np.testing.assert_array_equal(found, by_area)
    left, right = (
        evaluation.predict(MODEL, variables, image[:, part], pad_to=32)
        for part in (slice(0, 32), slice(16, 48))
    )
    np.testing.assert_allclose(found[:, :16], left[:, :16], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[:, 32:], right[:, 16:], rtol=0, atol=1e-5)
    share = ((np.arange(16) + 1) / 17)[:, None]  # of the right tile, in the sixteen columns shared
    between = left[:, 16:] * (1 - share) + right[:, :16] * share
    np.testing.assert_allclose(found[:, 16:32], between, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 56), (70, 70), (32, 33)])
def test_no_neighbours_differ_more_than_fading_asks_for(size):
    """Tiles that contradict each other, as far as probabilities can, leave no edge."""
    windows = list(tiling.tiles(size, side=32, overlap=0.25))
    parts = []
    for i, window in enumerate(windows):
        height, width = (s.stop - s.start for s in window)
        parts.append((window, np.full((height, width, 2), [i % 2, 1 - i % 2], np.float32)))
    merged = tiling.merge_tiles(parts, size)
    np.testing.assert_allclose(merged.sum(-1), 1, rtol=1e-5)
    shared = 8  # rows or columns at least; weights go from one tile to the other over them
    for axis in (0, 1):
        assert np.abs(np.diff(merged, axis=axis)).max() <= 2 / shared


def test_tiles_that_cannot_cover_are_refused():
    for side, overlap in ((0, 0.25), (32, 1.0), (32, -0.1)):
        with pytest.raises(UserError, match="cover nothing"):
            list(tiling.tiles((40, 40), side=side, overlap=overlap))


@pytest.mark.parametrize("devices", [1, 4])
def test_a_split_scores_in_tiles_what_its_photographs_do(devices, variables):
    """Tiles of 24 cover the last photograph and no other."""
    split = [*draw_split()[:4], {"image": photograph(20, 24), "labels": np.zeros((20, 24), int)}]
    expected = np.zeros((3, 3), int)
    for item in split:
        probs = evaluation.predict(MODEL, variables, item["image"], tile=24, overlap=0.5)
        expected += reference.confusion(item["labels"], probs.argmax(-1), 3)
    found = evaluation.evaluate(
        MODEL,
        variables,
        split,
        pad_to=None,
        tile=24,
        overlap=0.5,
        devices=jax.local_devices()[:devices],
    )
    np.testing.assert_array_equal(found.confusion, expected)


@pytest.mark.parametrize("size", [(5, 5), (10, 31), (100, 64), (33, 200)])
def test_tiles_cover_everything_and_overlap_as_asked(size):
    seen = np.zeros(size, int)
    windows = list(tiling.tiles(size, side=32, overlap=0.25))
    for window in windows:
        assert seen[window].shape == tuple(min(n, 32) for n in size)
        seen[window] += 1
    assert seen.min() == 1
    lefts = sorted({columns.start for _, columns in windows})
    assert all(b - a <= 24 for a, b in zip(lefts, lefts[1:], strict=False))


def test_the_padded_size_is_513_or_closes_over_the_scales():
    msc = CORNERS.clone(scales=(1.0, 0.75, 0.5))
    assert evaluation.padded_size(MODEL, (375, 500), 513) == (513, 513)
    assert evaluation.padded_size(MODEL, (600, 500), 513) == (600, 513)
    assert evaluation.padded_size(MODEL, (375, 500), None) == (375, 500)
    assert evaluation.padded_size(CORNERS, (375, 500), None) == (377, 505)
    assert evaluation.padded_size(msc, (375, 500), None) == (385, 513)
    assert evaluation.padded_size(msc, (375, 500), 513) == (513, 513)


def draw_split():
    """Photographs of three sizes, with ignored pixels; 7 fill no number of devices."""
    sizes = [(20, 30), (30, 20), (20, 30), (33, 33), (20, 30), (30, 20), (20, 30)]
    rng = np.random.default_rng(1)
    split = []
    for i, size in enumerate(sizes):
        labels = rng.choice([0, 1, 2, IGNORE_LABEL], size).astype(np.uint8)
        split.append({"image": photograph(*size, seed=i), "labels": labels})
    return split


@pytest.fixture(scope="module")
def confusion(variables):
    """Of the split of `draw_split`, from one photograph at a time."""
    total = np.zeros((3, 3), int)
    for item in draw_split():
        predicted = evaluation.predict(MODEL, variables, item["image"]).argmax(-1)
        total += reference.confusion(item["labels"], predicted, 3)
    return total


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_split_scores_the_same_on_any_number_of_devices(devices, variables, confusion):
    found = evaluation.evaluate(
        MODEL, variables, draw_split(), pad_to=None, devices=jax.local_devices()[:devices]
    )
    np.testing.assert_array_equal(found.confusion, confusion)


def test_a_padded_split_scores_what_padded_photographs_do(variables):
    split = draw_split()[:3]
    expected = np.zeros((3, 3), int)
    for item in split:
        probs = evaluation.predict(MODEL, variables, item["image"], pad_to=41, flip=True)
        expected += reference.confusion(item["labels"], probs.argmax(-1), 3)
    found = evaluation.evaluate(MODEL, variables, split, pad_to=41, flip=True)
    np.testing.assert_array_equal(found.confusion, expected)


def test_a_refinement_is_scored_beside_the_network(variables, confusion):
    before, after = evaluation.evaluate_refined(
        MODEL,
        variables,
        draw_split(),
        lambda image, probs: probs[..., ::-1],  # classes exchanged
        pad_to=None,
        devices=jax.local_devices()[:2],
    )
    np.testing.assert_array_equal(before.confusion, confusion)
    np.testing.assert_array_equal(after.confusion, confusion[:, ::-1])


@pytest.mark.parametrize("what", ["labels", pytest.param("probs", marks=pytest.mark.slow)])
def test_inference_and_evaluation_lower_for_cpu_cuda_and_tpu(what, draw_variables):
    model = MODEL.clone(scales=(1.0, 0.75, 0.5))
    platforms = ("cpu", "cuda", "tpu")
    body = jax.jit(
        lambda v, image, sizes: evaluation.batch_outputs(
            model, v, image, sizes, scales=(1.0, 1.25), flip=True, what=what
        )
    )
    exported = jax.export.export(body, platforms=platforms)(
        draw_variables(model), jnp.zeros((2, 65, 33, 3), jnp.uint8), jnp.array([[65, 33]] * 2)
    )
    assert exported.platforms == platforms
    (out,) = exported.out_avals
    assert out.shape == ((2, 65, 33, 3) if what == "probs" else (2, 65, 33))


def test_each_photograph_comes_with_what_the_network_and_the_refinement_say(variables):
    split = draw_split()
    found = evaluation.each_prediction(
        MODEL, variables, split, lambda image, probs: probs[..., ::-1], pad_to=None
    )
    for item, (network, refined) in found:
        probs = evaluation.predict(MODEL, variables, item["image"])
        np.testing.assert_array_equal(network, probs.argmax(-1))
        np.testing.assert_array_equal(refined, probs[..., ::-1].argmax(-1))


def test_outputs_stay_on_the_devices_that_computed_them_where_asked(variables):
    devices = jax.local_devices()[:4]
    images = [(i, item["image"]) for i, item in enumerate(draw_split())]
    options = {"pad_to": None, "what": "probs", "devices": devices}
    expected = dict(evaluation.outputs_of(MODEL, variables, iter(images), **options))
    found = dict(evaluation.outputs_of(MODEL, variables, iter(images), on_device=True, **options))
    used = set()
    for number, probs in found.items():
        np.testing.assert_array_equal(probs, expected[number])
        (device,) = probs.devices()
        used.add(device)
    assert used == set(devices)


def test_photographs_in_tiles_come_as_numpy_arrays_from_devices_too(variables):
    images = [(0, photograph(40, 30)), (1, photograph(20, 20))]
    options = {"pad_to": None, "what": "probs", "tile": 30, "devices": jax.local_devices()[:1]}
    expected = dict(evaluation.outputs_of(MODEL, variables, iter(images), **options))
    found = dict(evaluation.outputs_of(MODEL, variables, iter(images), on_device=True, **options))
    assert isinstance(found[0], np.ndarray) and isinstance(found[1], jax.Array)
    for number in (0, 1):
        np.testing.assert_array_equal(found[number], expected[number])


def test_accelerators_refine_where_they_computed_and_score_the_same(variables, monkeypatch):
    places = []

    def refine(image, probs):
        if isinstance(probs, jax.Array):
            places.extend(probs.devices())
        return probs[..., ::-1] * image[..., :1]

    devices = jax.local_devices()[:2]
    options = {"pad_to": None, "devices": devices}
    run = partial(evaluation.evaluate_refined, MODEL, variables, draw_split(), refine, **options)
    on_host = run()
    assert not places
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    on_devices = run()
    assert set(places) == set(devices)
    for ours, theirs in zip(on_devices, on_host, strict=True):
        np.testing.assert_array_equal(ours.confusion, theirs.confusion)


def test_a_tpu_hands_probabilities_to_its_host_which_refines_them_by_its_own_tables(
    variables, monkeypatch
):
    found = []

    def refine(image, probs):
        found.append(type(probs))
        return probs

    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    evaluation.evaluate_refined(MODEL, variables, draw_split(), refine, pad_to=None)
    assert set(found) == {np.ndarray}
    assert not kernels.on_cpu()

    def refuse(*_):
        raise AssertionError("the lattice is built on the device")

    monkeypatch.setattr(kernels, "compiled_vertices", refuse)
    image = photograph(24, 20)
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (24, 20)).astype(np.float32)
    refined = crf.refine(image, probs)
    monkeypatch.undo()
    np.testing.assert_array_equal(refined, crf.refine(image, probs))


@pytest.mark.slow
def test_the_crf_refines_on_the_device_of_the_probabilities():
    image, device = photograph(24, 20), jax.local_devices()[3]
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (24, 20)).astype(np.float32)
    on_device = crf.refine(image, jax.device_put(probs, device))
    assert on_device.devices() == {device}
    np.testing.assert_allclose(on_device, crf.refine(image, probs), atol=1e-6)
