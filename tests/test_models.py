"""The networks: sizes, scores, what a score sees, and where numbers stop being finite."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import reference
from tiny_networks import resnet, shallow, vgg

from deeplab_jax import diagnosis, losses, receptive_field, train
from deeplab_jax.models.deeplab import build
from deeplab_jax.models.layers import Conv
from deeplab_jax.ops import xla
from deeplab_jax.ops.resize import rescale
from deeplab_jax.types import Batch, UserError

SIZES = """
321 161 81 41 161 81 41
513 257 129 65 257 129 65
241 121 61 31 121 61 31
161 81 41 21 81 41 21
385 193 97 49 193 97 49
257 129 65 33 129 65 33
512 257 129 65 256 129 65
500 251 126 64 250 126 63
375 188 95 48 188 95 48
"""
"""Input; VGG's pool1, pool2, pool3; ResNet's conv1, pool1, res3. The last is the feature map."""


@pytest.fixture(scope="module")
def inputs():
    return jnp.asarray(np.random.default_rng(0).normal(size=(1, 65, 65, 3)) * 60, jnp.float32)


def sizes_of(model, size):
    """Name -> rows of the output of every convolution, and the shape of the logits."""
    found = {}

    def watch(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            found["/".join(context.module.path)] = y.shape[1]
        return y

    def run(x):
        with nn.intercept_methods(watch):
            return model.init_with_output(jax.random.key(0), x)[0]

    logits = jax.eval_shape(run, jnp.zeros((1, size, size, 3)))
    return found, logits.shape


@pytest.mark.parametrize("line", SIZES.split("\n")[1:-1])
def test_feature_maps_have_the_sizes_of_the_caffe_release(line):
    size, *maps = map(int, line.split())
    seen, logits = sizes_of(vgg(), size)
    assert [seen[f"trunk/conv{i}_1"] for i in (2, 3, 4)] == maps[:3]
    assert logits == (1, maps[2], maps[2], 3)
    seen, logits = sizes_of(resnet(), size)
    inside = ("conv1", "res2_1/branch2a", "res3_1/branch2a")
    assert [seen[f"trunk/{name}"] for name in inside] == maps[3:]
    assert logits == (1, maps[5], maps[5], 3)


@pytest.mark.parametrize("network", [resnet, partial(resnet, stride_placement="torch"), vgg])
def test_a_logit_is_centred_on_the_pixel_eight_times_its_index(network, draw_variables):
    """A pixel that is no number spoils the logits that see it: all around it, symmetrically."""
    model = network(aspp_rates=(1,))
    variables = draw_variables(model)
    inputs = np.zeros((1, 257, 257, 3), np.float32)
    inputs[:, 128, 128] = np.nan
    logits = jax.jit(model.apply)(variables, inputs)
    rows, columns = np.nonzero(np.isnan(logits[0, :, :, 0]))
    middle = 128 // 8
    assert (rows.min() + rows.max()) / 2 == (columns.min() + columns.max()) / 2 == middle
    assert 3 <= rows.max() - rows.min() < 32  # it sees a part of the photograph


def test_multi_scale_scores_are_the_maximum_of_three_and_have_the_four_losses_of_the_release(
    draw_variables,
):
    model = shallow(alignment="corners", scales=(1.0, 0.75, 0.5))
    variables = draw_variables(model)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(2, 65, 33, 3)) * 60, jnp.float32)
    maps = []
    for scale, size in {1.0: (65, 33), 0.75: (49, 25), 0.5: (33, 17)}.items():
        resized = rescale(inputs, scale, alignment="corners")
        assert resized.shape[1:3] == size
        maps.append(np.asarray(model.clone(scales=(1.0,)).apply(variables, resized)))
    together = model.apply(variables, inputs, method="score_maps")
    for found, wanted in zip(together, reference.msc_maps(*maps), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())

    labels = rng.integers(0, 3, (2, 65, 33), np.uint8)
    labels[0, 20:] = 255
    sizes = [m.shape[1:3] for m in together]
    targets = losses.label_maps(jnp.asarray(labels), sizes, alignment="corners")
    shared = {"group_size": 2, "batch_size": 2, "axis_name": None}
    weights = [
        losses.photograph_weights(losses.count_valid(target), jnp.arange(2), **shared)
        for target in targets
    ]
    found = losses.weighted_loss(together, targets, weights)
    np.testing.assert_allclose(found, reference.msc_loss(*maps, labels), rtol=1e-4)


def test_from_scratch_the_last_scale_of_each_block_is_zero_and_the_trunk_is_he_initialised():
    model = resnet(width=16, norm="trained")
    params = jax.jit(lambda: train.init_variables(model, jax.random.key(0)))()["params"]
    for stage in (2, 3, 4, 5):
        block = params["trunk"][f"res{stage}_1"]
        assert (block["branch2c"]["scale"] == 0).all()
        assert (block["branch2b"]["scale"] == 1).all()
        kernel = block["branch2b"]["kernel"]
        expected = (2 / np.prod(kernel.shape[:3])) ** 0.5
        assert float(kernel.std()) == pytest.approx(expected, rel=0.1)  # over 2,000 numbers
    assert float(params["head"]["fc8_1"]["kernel"].std()) == pytest.approx(0.01, rel=0.1)
    assert (params["head"]["fc8_1"]["bias"] == 0).all()


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(draw_variables, inputs):
    variables, short = draw_variables(resnet()), resnet(dtype="bfloat16")
    exact, found = (jax.jit(model.apply)(variables, inputs) for model in (resnet(), short))
    assert found.dtype == jnp.float32
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(train.variable_shapes(short))}
    assert kinds == {"float32"}
    error = np.abs(found - exact).max() / np.abs(exact).max()
    assert 0 < error < 0.1  # 8 bits through 20 layers


def test_the_forms_of_every_platform_are_one_network(draw_variables, inputs):
    variables = draw_variables(resnet())

    def loss(params):
        logits = resnet().apply({**variables, "params": params}, inputs)
        return jnp.square(logits).mean(), logits

    def logits_and_gradients(platform):
        with xla.forms_of(platform):
            found = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        return jax.tree.leaves(found)

    plain = logits_and_gradients("plain")
    for platform in ("cpu", "cuda"):
        for found, expected in zip(logits_and_gradients(platform), plain, strict=True):
            tolerance = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


WRONG = {
    "model.backbone is 'resnext', and one of resnet, vgg": {"backbone": "resnext"},
    "model.norm is 'frozn', and one of none, frozen, trained": {"norm": "frozn"},
    "one of caffe, torch was expected": {"stride_placement": "pytorch"},
    "model.alignment is 'corner'": {"alignment": "corner"},
    "model.dtype is 'float16'": {"dtype": "float16"},
    "must be one or more numbers of at least 1": {"aspp_rates": ()},
    "must hold 1.0": {"scales": (0.5,)},
    "a resnet trunk has 4 stages": {"stage_sizes": (3, 4, 23)},
    "corners_v1 is for VGG's 2x2 pools": {"alignment": "corners_v1"},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_wrong_name_builds_no_network(sentence, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # else types refuse it
    with pytest.raises(UserError, match=re.escape(sentence)):
        build(3, **WRONG[sentence])


tiny = partial(resnet, num_classes=2, stage_sizes=(1, 2, 1, 1), width=1, aspp_rates=(1, 3))
TINY = tiny()
MODELS = {
    "resnet": TINY,
    "stride in the 3x3": tiny(stride_placement="torch"),
    "vgg": vgg(num_classes=2, width=1, aspp_rates=(1, 3), head_width=1, pool5a=True),
    "4x4 head": tiny(head_kernel_size=4, aspp_rates=(2,)),
}


def reach(model, variables, side):
    """Side of the pixels that change the middle score, by making them NaN from the left on.

    A kernel and its zeros pass NaN on, so that no weight can hide a pixel.
    """
    height = 33
    middle = (side - 1) // 2
    columns = jnp.arange(side)

    @jax.jit
    def spoils(edge):
        inputs = jnp.where(columns <= edge, jnp.nan, 1.0)[None, None, :, None]
        logits = model.apply(variables, jnp.broadcast_to(inputs, (1, height, side, 3)))
        return jnp.isnan(logits[0, logits.shape[1] // 2, middle // 8]).any()

    inside = [edge for edge in range(middle + 1) if spoils(edge)]
    return 2 * (middle - inside[0]) + 1


@pytest.mark.parametrize("name", MODELS)
def test_the_theoretical_field_is_what_nan_pixels_reach(name, draw_variables):
    model = MODELS[name]
    field = receptive_field.theoretical(model)
    assert field == reach(model, draw_variables(model), field // 16 * 16 + 33)


MODEL = resnet()


@pytest.fixture
def batch():
    """One device, two accumulation steps of a photograph each."""
    image = np.random.default_rng(0).integers(0, 256, (1, 2, 1, 33, 33, 3), np.uint8)
    return Batch(image=image, labels=None, sample=np.arange(2, dtype=np.int32).reshape(1, 2, 1))


@pytest.mark.parametrize("spoilt", [None, "head/fc8_2"])
def test_the_first_layer_that_is_not_finite_is_named(draw_variables, batch, spoilt):
    variables = draw_variables(MODEL)
    if spoilt:
        variables["params"]["head"]["fc8_2"]["kernel"] *= np.inf
    assert diagnosis.first_non_finite_layer(MODEL, variables, batch) == spoilt


def test_a_photograph_of_a_later_accumulation_step_is_found(draw_variables, batch, monkeypatch):
    make_inputs = diagnosis.make_inputs

    def poison(image, mean):
        return make_inputs(image, mean) / (image[0, 0, 0, 0] != 7)

    monkeypatch.setattr(diagnosis, "make_inputs", poison)
    batch.image[0, 0, 0, 0, 0, 0] = 8
    batch.image[0, 1, 0, 0, 0, 0] = 7
    variables = draw_variables(MODEL)
    assert diagnosis.first_non_finite_layer(MODEL, variables, batch) == "trunk/conv1"
