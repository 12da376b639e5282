"""Prediction and scores; photographs of many sizes in one program have the values of their own."""

from dataclasses import replace
from functools import partial

import jax
import jax.export
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from scipy.special import softmax
from tiny_networks import resnet, shallow, vgg

from deeplab_jax import crf, evaluation, tiling
from deeplab_jax.crf import kernels
from deeplab_jax.models import masking
from deeplab_jax.models.deeplab import make_inputs
from deeplab_jax.models.heads import ASPP
from deeplab_jax.types import IGNORE_LABEL, UserError

MODEL = shallow(ASPP(3, rates=(1, 2)), alignment="half_pixel")
CORNERS = MODEL.clone(alignment="corners")


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(MODEL)


@pytest.fixture(scope="module")
def predict(variables):
    return partial(evaluation.predict, MODEL, variables)


@pytest.fixture(scope="module")
def outputs_of(variables):
    """(photographs, options) -> outputs by number."""

    def outputs(images, **options):
        options = {"pad_to": None, "what": "probs", **options}
        return dict(evaluation.outputs_of(MODEL, variables, enumerate(images), **options))

    return outputs


def photograph(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def probs_of(model, variables, inputs, size):
    """The definition: softmax of the enlarged scores; logits are in the tens."""
    scores = jax.jit(model.apply)(variables, jnp.asarray(inputs)[None])[0]
    return softmax(reference.resize(np.asarray(scores), size, alignment=model.alignment), axis=-1)


@pytest.mark.parametrize("model", [MODEL, CORNERS], ids=["half_pixel", "corners"])
def test_probabilities_are_the_softmax_of_the_enlarged_scores_at_any_size(model, variables):
    image = photograph(33, 41)
    probs = evaluation.predict(model, variables, image)
    expected = probs_of(model, variables, make_inputs(image), (33, 41))
    np.testing.assert_allclose(probs, expected, rtol=0, atol=1e-3)
    assert probs.dtype == np.float32
    for size in [(1, 1), (8, 50), (40, 7)]:
        probs = evaluation.predict(model, variables, photograph(*size))
        assert probs.shape == (*size, 3)
        np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)


def test_padding_is_the_mean_pixel_below_and_on_the_right(variables, predict):
    image = photograph(20, 30)
    inputs = np.zeros((41, 41, 3), np.float32)
    inputs[:20, :30] = make_inputs(image)
    expected = probs_of(MODEL, variables, inputs, (41, 41))[:20, :30]
    np.testing.assert_allclose(predict(image, pad_to=41), expected, rtol=0, atol=1e-3)


def test_a_flipped_photograph_has_flipped_probabilities_when_averaged_over_the_flip(predict):
    image = photograph(33, 33)
    flipped = image[:, ::-1]
    both = predict(image, flip=True)
    np.testing.assert_allclose(both[:, ::-1], predict(flipped, flip=True), rtol=0, atol=1e-4)
    once, other = predict(image), predict(flipped)[:, ::-1]
    np.testing.assert_allclose(both, (once + other) / 2, rtol=0, atol=1e-4)
    assert np.abs(once - both).max() > 1e-3


def test_options_may_come_as_an_object_or_by_their_names(predict):
    run = partial(predict, photograph(17, 17))
    expected = run(pad_to=25, flip=True)
    options = evaluation.InferenceOptions(pad_to=25, flip=True)
    np.testing.assert_array_equal(run(options), expected)
    np.testing.assert_array_equal(run(replace(options, flip=False), flip=True), expected)
    assert np.abs(run(replace(options, flip=False)) - expected).max() > 1e-3
    with pytest.raises(TypeError, match="mirror"):
        run(mirror=True)


def test_extra_scales_average_probabilities(variables, predict):
    image = photograph(33, 33)
    inputs = np.asarray(make_inputs(image))
    sides = [(i + 0.5) / 1.25 - 0.5 for i in range(int(33 * 1.25))]
    views = [inputs, reference.bilinear(inputs, sides, sides).astype(np.float32)]
    expected = np.mean([probs_of(MODEL, variables, view, (33, 33)) for view in views], 0)
    np.testing.assert_allclose(predict(image, scales=(1.0, 1.25)), expected, rtol=0, atol=2e-3)


def test_tiled_probabilities_are_the_whole_ones_where_one_tile_covers_the_photograph(
    predict, outputs_of
):
    image = photograph(30, 25)
    whole = predict(image)
    (tiled,) = outputs_of([image], tile=30).values()
    for found in (predict(image, tile=30), predict(image, tile=99), tiled):
        np.testing.assert_array_equal(found, whole)


def test_tiles_fade_into_each_other_where_they_meet(predict):
    image = photograph(32, 48)
    found = predict(image, tile=32, overlap=0.5)
    np.testing.assert_array_equal(found, predict(image, max_pixels=32 * 32, overlap=0.5))
    left, right = predict(image[:, :32], pad_to=32), predict(image[:, 16:], pad_to=32)
    share = ((np.arange(16) + 1) / 17)[:, None]  # of the right tile, in the sixteen columns shared
    between = left[:, 16:] * (1 - share) + right[:, :16] * share
    expected = np.concatenate([left[:, :16], between, right[:, 16:]], axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 5), (10, 31), (32, 56), (70, 70), (32, 33), (33, 200)])
def test_tiles_cover_everything_and_no_neighbours_differ_more_than_fading_asks_for(size):
    """Tiles that contradict each other, as far as probabilities can, leave no edge."""
    windows = list(tiling.tiles(size, side=32, overlap=0.25))
    parts = []
    for i, window in enumerate(windows):
        shape = tuple(min(n, 32) for n in size)
        assert tuple(s.stop - s.start for s in window) == shape
        parts.append((window, np.full((*shape, 2), [i % 2, 1 - i % 2], np.float32)))
    merged = tiling.merge_tiles(parts, size)
    np.testing.assert_allclose(merged.sum(-1), 1, rtol=1e-5)
    shared = 8  # rows or columns at least; weights go from one tile to the other over them
    for axis in (0, 1):
        assert np.abs(np.diff(merged, axis=axis)).max() <= 2 / shared


@pytest.mark.parametrize(("side", "overlap"), [(0, 0.25), (32, 1.0), (32, -0.1)])
def test_tiles_that_cannot_cover_are_refused(side, overlap):
    with pytest.raises(UserError, match="cover nothing"):
        list(tiling.tiles((40, 40), side=side, overlap=overlap))


def test_the_padded_size_is_513_or_closes_over_the_scales():
    msc = CORNERS.clone(scales=(1.0, 0.75, 0.5))
    for model, size, pad_to, expected in [
        (MODEL, (375, 500), 513, (513, 513)),
        (MODEL, (600, 500), 513, (600, 513)),
        (MODEL, (375, 500), None, (375, 500)),
        (CORNERS, (375, 500), None, (377, 505)),
        (msc, (375, 500), None, (385, 513)),
        (msc, (375, 500), 513, (513, 513)),
    ]:
        assert evaluation.padded_size(model, size, pad_to) == expected


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
def confusion_of(predict):
    """(photographs, options) -> confusion matrix, from one photograph at a time."""

    def confusion(split, **options):
        total = np.zeros((3, 3), int)
        for item in split:
            predicted = predict(item["image"], **options).argmax(-1)
            total += reference.confusion(item["labels"], predicted, 3)
        return total

    return confusion


IN_TILES = {"pad_to": None, "tile": 24, "overlap": 0.5}
"""Tiles that cover the last of these photographs and no other."""


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("options", [{"pad_to": None}, {"pad_to": 41, "flip": True}, IN_TILES])
def test_a_split_scores_what_its_photographs_do(devices, options, variables, confusion_of):
    split = [*draw_split(), {"image": photograph(20, 24), "labels": np.zeros((20, 24), int)}]
    devices = jax.local_devices()[:devices]
    found = evaluation.evaluate(MODEL, variables, split, devices=devices, **options)
    np.testing.assert_array_equal(found.confusion, confusion_of(split, **options))


def test_network_and_refinement_come_and_are_scored_beside_each_other(
    variables, predict, confusion_of
):
    options = {"pad_to": None, "devices": jax.local_devices()[:2]}
    arguments = (MODEL, variables, draw_split(), lambda image, probs: probs[..., ::-1])
    for item, (network, refined) in evaluation.each_prediction(*arguments, **options):
        probs = predict(item["image"])
        np.testing.assert_array_equal(network, probs.argmax(-1))
        np.testing.assert_array_equal(refined, probs[..., ::-1].argmax(-1))
    scored = evaluation.evaluate(*arguments[:3], **options)
    np.testing.assert_array_equal(scored.confusion, confusion_of(draw_split()))


@pytest.mark.parametrize("what", ["labels", pytest.param("probs", marks=pytest.mark.slow)])
def test_inference_and_evaluation_lower_for_cpu_cuda_and_tpu(what, draw_variables):
    model = resnet(scales=(1.0, 0.5))
    platforms = ("cpu", "cuda", "tpu")
    options = {"scales": (1.25,), "flip": True, "what": what}
    body = jax.jit(lambda *arrays: evaluation.batch_outputs(model, *arrays, **options))
    exported = jax.export.export(body, platforms=platforms)(
        draw_variables(model), jnp.zeros((2, 65, 33, 3), jnp.uint8), jnp.array([[65, 33]] * 2)
    )
    assert exported.platforms == platforms
    (out,) = exported.out_avals
    assert out.shape == ((2, 65, 33, 3) if what == "probs" else (2, 65, 33))


def test_outputs_stay_on_the_devices_that_computed_them_where_asked(outputs_of):
    """All but those of photographs in tiles, the first."""
    devices = jax.local_devices()[:4]
    images = [photograph(40, 30), *(item["image"] for item in draw_split())]
    expected = outputs_of(images, devices=devices, tile=33)
    found = outputs_of(images, devices=devices, tile=33, on_device=True)
    for number, probs in found.items():
        np.testing.assert_array_equal(probs, expected[number])
    assert isinstance(found.pop(0), np.ndarray)
    assert set().union(*(probs.devices() for probs in found.values())) == set(devices)
    assert all(len(probs.devices()) == 1 for probs in found.values())


@pytest.mark.parametrize(("backend", "on_devices"), [("gpu", 2), ("tpu", 0)])
def test_gpus_refine_where_they_computed_and_all_refine_the_same(
    backend, on_devices, variables, monkeypatch
):
    places = set()

    def refine(image, probs):
        if isinstance(probs, jax.Array):
            places.update(probs.devices())
        return probs[..., ::-1] * image[..., :1]

    options = {"pad_to": None, "devices": jax.local_devices()[:2]}
    run = partial(evaluation.each_prediction, MODEL, variables, draw_split(), refine, **options)
    on_cpus = [maps for _, maps in run()]
    assert not places
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for found, expected in zip([maps for _, maps in run()], on_cpus, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert len(places) == on_devices


def test_the_host_of_a_tpu_refines_by_its_own_tables(monkeypatch):
    def refuse(*_):
        raise AssertionError("the lattice is built on the device")

    image, probs = photograph(24, 20), drawn_probs()
    expected = crf.refine(image, probs)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not kernels.on_cpu()
    monkeypatch.setattr(kernels, "compiled_vertices", refuse)
    np.testing.assert_array_equal(crf.refine(image, probs), expected)


def drawn_probs():
    return np.random.default_rng(0).dirichlet(np.ones(3), (24, 20)).astype(np.float32)


@pytest.mark.slow
def test_the_crf_refines_on_the_device_of_the_probabilities():
    image, probs, device = photograph(24, 20), drawn_probs(), jax.local_devices()[3]
    on_device = crf.refine(image, jax.device_put(probs, device))
    assert on_device.devices() == {device}
    np.testing.assert_allclose(on_device, crf.refine(image, probs), atol=1e-6)


network = {"aspp_rates": (1, 6), "dtype": "float64"}
msc = {**network, "scales": (1.0, 0.75)}
pools = {**network, "aspp_rates": (2,), "alignment": "corners_v1", "head_kernel_size": 4}
MODELS = {
    "resnet, corners": resnet(**msc, alignment="corners", stride_placement="torch"),
    "resnet, cells": resnet(**msc),
    "vgg": vgg(**network, pool5a=True),
    "vgg, 2x2 pools": vgg(**pools),
}
ARRAY = (97, 65)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_logits_in_a_larger_array_are_those_of_the_size_itself(model, draw_variables):
    """What lies beyond is noise here. Reference: lax operations at the size itself."""
    rng = np.random.default_rng(0)
    sizes = {"corners": [(65, 33), (1, 33)], "corners_v1": [(66, 34), (2, 34)]}
    sizes = sizes.get(model.alignment, [(62, 40), (59, 65)])
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda a: jnp.asarray(a, "float64"), draw_variables(model))
        batch = rng.normal(size=(2, *ARRAY, 3)) * 60
        within = jnp.asarray(sizes, jnp.int32)
        full_size = partial(model.apply, method="full_size")

        @jax.jit
        def in_one_array(variables, batch, sizes):
            return masking.masked(full_size, variables, batch, ARRAY, sizes=sizes, full_sizes=sizes)

        found = in_one_array(variables, batch, within)
        for inputs, logits, (rows, columns) in zip(batch, found, sizes, strict=True):
            alone = partial(full_size, size=(rows, columns))
            expected = jax.jit(alone)(variables, inputs[None, :rows, :columns])[0]
            logits = logits[:rows, :columns]
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.ptp(expected))


@pytest.mark.parametrize("alignment", ["cells", "corners", "half_pixel"])
def test_predictions_equal_those_at_native_size(alignment, draw_variables):
    """Those of a program that is compiled for the size, of logits as trained networks have."""
    model = shallow(ASPP(21, rates=(1, 6)), alignment=alignment)
    variables = draw_variables(model)
    variables["params"]["head"] = jax.tree.map(lambda a: 0.05 * a, variables["params"]["head"])
    image = photograph(50, 77)
    options = {"scales": (1.25,), "flip": True}
    found = evaluation.predict(model, variables, image, **options)
    rows, columns = evaluation.padded_size(model, (50, 77), None)
    padded = np.pad(image, ((0, rows - 50), (0, columns - 77), (0, 0)))[None]
    sizes = jnp.array([[50, 77]])
    expected = evaluation.batch_outputs(model, variables, padded, sizes, **options)[0, :50, :77]
    assert 0.02 < expected.std(-1).mean() < 0.2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_device", [1, 2])
def test_photographs_of_other_sizes_share_a_batch(per_device, draw_variables, monkeypatch):
    model = shallow()
    variables = draw_variables(model)
    images = [photograph(*size) for size in [(50, 77), (99, 20), (33, 33)]]
    monkeypatch.setattr(evaluation, "_fitting", lambda *_: per_device)
    options = {"pad_to": None, "what": "probs"}
    options["devices"] = jax.local_devices()[:2]
    outputs = dict(evaluation.outputs_of(model, variables, enumerate(images), **options))
    assert sorted(outputs) == [0, 1, 2]
    for i, found in outputs.items():
        expected = evaluation.predict(model, variables, images[i])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_photographs_of_many_sizes_need_few_programs(draw_variables):
    names, model = [], shallow()
    split = [photograph(60 + 7 * i, 97 - 5 * i) for i in range(8)]
    split = [{"image": image, "labels": np.zeros(image.shape[:2], int)} for image in split]
    options = {"pad_to": None, "devices": jax.local_devices()[:1]}
    listen = lambda name, *_, **__: names.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        evaluation.evaluate(model, draw_variables(model), split, **options)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert 1 <= sum("backend_compile" in name for name in names) <= 6
