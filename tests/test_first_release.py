"""The 4x4 network of the first release (Table 1) against its prototxt, written in NumPy."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import vgg_reference

from deeplab_jax import evaluation, optim, train
from deeplab_jax.config import check, completed
from deeplab_jax.models.deeplab import MEAN_BGR, build, make_inputs
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import Batch, UserError
from deeplab_jax.weights.files import flatten

FIELDS = {"backbone": "vgg", "norm": "none", "scales": (1.0,), "alignment": "corners_v1"}
MODEL = build(
    3,
    **FIELDS,
    stage_sizes=(1,) * 5,
    width=2,
    aspp_rates=(4,),
    head_kernel_size=4,
    head_width=5,
    dropout=0.0,
)
CROP = 26  # 8k + 2


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(MODEL)


def draw(number=2):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (number, CROP, CROP, 3), np.uint8)
    labels = rng.integers(0, 3, (number, CROP, CROP), np.uint8)
    labels[0, :12] = 255
    return images, labels


def inputs_of(images):
    return images[..., ::-1] - np.array(MEAN_BGR)


def named(tree):
    return {name: np.asarray(leaf, float) for name, leaf in flatten({"params": tree}).items()}


def test_scores_of_photographs_are_those_of_the_test_prototxt(variables):
    images, _ = draw()
    found = MODEL.apply(variables, make_inputs(images), (CROP, CROP), method="full_size")
    scores, _ = vgg_reference.forward(named(variables["params"]), inputs_of(images), train=False)
    expected = vgg_reference.enlarge(scores)
    assert expected.shape == (2, CROP, CROP, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.ptp(expected))


def test_two_updates_are_those_of_the_train_prototxt(variables):
    images, labels = draw()
    schedule = optim.step(1e-3, every=1, gamma=0.5)
    step = jax.jit(
        train.make_step(MODEL, optim.caffe_sgd(schedule), seed=0, batch_size=2, group_size=2)
    )
    state = train.init_state(variables, optim.caffe_sgd(schedule))
    batch = Batch(images[None], labels[None], np.arange(2, dtype=np.int32)[None])
    losses, params, rates = [], named(variables["params"]), [1e-3, 5e-4]
    multipliers = {
        name: (
            (10 if "fc8" in name else 1) * (2 if name.endswith("bias") else 1),
            0 if name.endswith("bias") else 1,
        )
        for name in params
    }
    gradients = []
    for _ in rates:
        state, values = step(state, batch)
        loss, gradient = vgg_reference.loss_and_gradient(params, inputs_of(images), labels)
        losses.append((values["loss"], loss))
        gradients.append(gradient)
        expected = reference.sgd(
            named(variables["params"]),
            gradients,
            rates=rates[: len(gradients)],
            momentum=0.9,
            decay=5e-4,
            multipliers=multipliers,
        )
        params = expected
    for found, wanted in losses:
        assert float(found) == pytest.approx(wanted, rel=1e-5)
    start, after = named(variables["params"]), named(state.params)
    assert after.keys() == params.keys()
    for name in after:
        found, change = after[name] - start[name], params[name] - start[name]
        tolerance = 2e-3 * np.abs(change).max()  # what float32 leaves of a small change
        np.testing.assert_allclose(found, change, rtol=0, atol=tolerance, err_msg=name)


def test_maps_of_the_releases_crops_have_its_sizes():
    model = completed(PRESETS["table1_4x4"].model)
    small = build(21, **{**vars(model), "width": 1, "head_width": 1})
    shapes = train.variable_shapes(small)
    assert train.map_sizes(small, shapes, (306, 306)) == [(39, 39)]
    photograph = jax.ShapeDtypeStruct((1, 514, 514, 3), jnp.float32)
    scores = jax.eval_shape(small.apply, shapes, photograph)
    assert scores.shape == (1, 67, 67, 21)
    assert evaluation.padded_size(small, (375, 500), 514) == (514, 514)
    assert evaluation.padded_size(small, (375, 500), None) == (378, 506)


def test_pools_of_size_2_come_with_the_alignment_of_the_first_release():
    assert MODEL.trunk.pool_kernel_size == 2
    other = build(3, **{**FIELDS, "alignment": "corners"}, stage_sizes=(1,) * 5, aspp_rates=(4,))
    assert other.trunk.pool_kernel_size == 3
    with pytest.raises(UserError, match="corners_v1 is for VGG's 2x2 pools"):
        build(3, **{**FIELDS, "backbone": "resnet", "norm": "frozen"})


def test_crops_of_the_first_release_are_8k_plus_2():
    config = PRESETS["table1_4x4"]
    config = replace(config, model=completed(config.model))
    data = replace(config.data, root=Path("x"), crop_size=313)
    with pytest.raises(UserError, match="multiple of 8 plus 2, such as 306 or 314"):
        check(replace(config, data=data))
