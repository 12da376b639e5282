"""Photographs of many sizes in one program: each has the values of its own size."""

from functools import partial

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import resnet, shallow, vgg

from deeplab_jax import evaluation
from deeplab_jax.data import images
from deeplab_jax.models import masking
from deeplab_jax.models.heads import ASPP
from deeplab_jax.types import IGNORE_LABEL

network = {"aspp_rates": (1, 6), "dtype": "float64"}
msc = {**network, "scales": (1.0, 0.75)}
pools = {**network, "aspp_rates": (2,), "alignment": "corners_v1", "head_kernel_size": 4}
MODELS = {
    "resnet, corners": resnet(**msc, alignment="corners", stride_placement="torch"),
    "resnet, cells": resnet(**msc),
    "vgg": vgg(**network, pool5a=True),
    "vgg, 2x2 pools": vgg(**pools),
}
LESS_COMMON = {
    "resnet, half pixels": resnet(**msc, alignment="half_pixel"),
    "vgg, corners": vgg(**network, alignment="corners"),
}
SLOW = [pytest.param(model, id=name, marks=pytest.mark.slow) for name, model in LESS_COMMON.items()]
ARRAY = (97, 65)


@pytest.mark.parametrize("model", [*(pytest.param(m, id=n) for n, m in MODELS.items()), *SLOW])
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


def photograph(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def at_its_own_size(model, variables, image, **options):
    """Probabilities of a program that is compiled for this size."""
    canvas = evaluation.padded_size(model, image.shape[:2], None)
    padded = np.zeros((1, *canvas, 3), np.uint8)
    padded[0, : image.shape[0], : image.shape[1]] = image
    sizes = jnp.asarray([image.shape[:2]])
    probs = evaluation.batch_outputs(model, variables, jnp.asarray(padded), sizes, **options)
    return np.asarray(probs)[0, : image.shape[0], : image.shape[1]]


def variables_of(model, draw_variables):
    """Logits of a trained network's range: probabilities are neither all 0 and 1 nor all alike."""
    variables = draw_variables(model)
    head = jax.tree.map(lambda a: 0.05 * a, variables["params"]["head"])
    return {**variables, "params": {**variables["params"], "head": head}}


@pytest.mark.parametrize("alignment", ["cells", "corners", "half_pixel"])
def test_predictions_equal_those_at_native_size(alignment, draw_variables):
    model = shallow(ASPP(21, rates=(1, 6)), alignment=alignment)
    variables = variables_of(model, draw_variables)
    image = photograph(50, 77)
    options = {"scales": (1.25,), "flip": True}
    found = evaluation.predict(model, variables, image, **options)
    expected = at_its_own_size(model, variables, image, **options)
    assert 0.02 < expected.std(-1).mean() < 0.2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("per_device", [1, 2])
def test_photographs_of_other_sizes_share_a_batch(per_device, draw_variables):
    model = shallow()
    variables = draw_variables(model)
    images = [photograph(*size) for size in [(50, 77), (99, 20), (33, 33)]]
    options = {"pad_to": None, "what": "probs", "per_device": per_device}
    options["devices"] = jax.local_devices()[:2]
    outputs = dict(evaluation.outputs_of(model, variables, enumerate(images), **options))
    assert sorted(outputs) == [0, 1, 2]
    for i, found in outputs.items():
        expected = evaluation.predict(model, variables, images[i])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_photograph_that_the_padding_does_not_hold_is_predicted_at_its_own_size(draw_variables):
    model = shallow()
    variables = draw_variables(model)
    image = photograph(50, 77)
    found = evaluation.predict(model, variables, image, pad_to=65)
    padded = np.zeros((1, 65, 77, 3), np.uint8)
    padded[0, :50] = image
    expected = evaluation.batch_outputs(model, variables, padded, jnp.array([[50, 77]]))
    np.testing.assert_allclose(found, expected[0, :50], rtol=0, atol=1e-5)


def count_compilations(function) -> int:
    names = []

    def listen(name, *_, **__):
        names.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return sum("backend_compile" in name for name in names)


@pytest.mark.data
def test_the_photographs_of_a_split_need_six_programs_and_score_as_at_native_size(
    draw_variables, data_folder
):
    root = data_folder / "voc2012_animals"
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    photographs = [images.read(root / "JPEGImages" / f"{name}.jpg") for name in names]
    blank = [np.full(image.shape[:2], IGNORE_LABEL) for image in photographs]
    split = [{"image": i, "labels": b} for i, b in zip(photographs, blank, strict=True)]
    model = resnet(num_classes=21, width=8, aspp_rates=(1, 6), scales=(1.0, 0.75))
    variables = variables_of(model, draw_variables)
    options = {"pad_to": None, "devices": jax.local_devices()[:1]}
    evaluate = partial(evaluation.evaluate, model, variables, split, **options)
    of_each_size = {image.shape: image for image in photographs}
    assert len(of_each_size) == 49
    assert 2 <= count_compilations(evaluate) <= 6
    for image in list(of_each_size.values())[::7]:
        found = evaluation.predict(model, variables, image)
        expected = at_its_own_size(model, variables, image)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
