"""The 4x4 network of the first release (Table 1) against its prototxt, in float64.

The definition is written here with slices and sums alone; its gradient is JAX's.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from deeplab_jax import evaluation, optim, train
from deeplab_jax.config import completed
from deeplab_jax.models.deeplab import MEAN_BGR, build, make_inputs
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import Batch
from deeplab_jax.weights.files import flatten

FIELDS = {"backbone": "vgg", "norm": "none", "scales": (1.0,), "alignment": "corners_v1"}
SIZES = {"stage_sizes": (1,) * 5, "width": 2, "head_kernel_size": 4, "head_width": 5}
MODEL = build(3, **FIELDS, **SIZES, aspp_rates=(4,), dropout=0.0)
CROP = 26  # 8k + 2


def convolve(x, kernel, bias, *, rate, padding):
    size = len(kernel)
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (n - rate * (size - 1) for n in x.shape[1:3])
    taps = [
        x[:, rate * m : rate * m + rows, rate * n : rate * n + columns] @ kernel[m, n]
        for m, n in np.ndindex(size, size)
    ]
    return sum(taps) + bias


def pool(x, *, kernel, stride, padding):
    """Caffe's: windows until the padded array is covered, without one that starts behind it."""

    def count(size):
        number = -(-(size + 2 * padding - kernel) // stride) + 1
        return number - (padding > 0 and (number - 1) * stride >= size + padding)

    rows, columns = (stride * count(n) for n in x.shape[1:3])
    around = (padding, kernel + stride)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=-jnp.inf)
    offsets = np.ndindex(kernel, kernel)
    parts = [x[:, m : m + rows : stride, n : n + columns : stride] for m, n in offsets]
    return jnp.stack(parts).max(0)


POOLS = [(2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 1, None), (3, 1, 1)]
"""Kernel, stride and padding; that of pool4 is 0 in training and 1 in the test prototxt."""


def scores(params, inputs, *, training):
    """At stride 8; parameters are named as in the package, so that their names are tested too."""

    def layer(x, name, **options):
        return convolve(x, params[f"{name}/kernel"], params[f"{name}/bias"], **options)

    x = inputs
    for i, (kernel, stride, padding) in enumerate(POOLS, 1):
        rate = 2 if i == 5 else 1
        x = jax.nn.relu(layer(x, f"trunk/conv{i}_1", rate=rate, padding=rate))
        padding = int(not training) if padding is None else padding
        x = pool(x, kernel=kernel, stride=stride, padding=padding)
    x = jax.nn.relu(layer(x, "head/fc6_1", rate=4, padding=6))
    x = jax.nn.relu(layer(x, "head/fc7_1", rate=1, padding=0))
    return layer(x, "head/fc8_1", rate=1, padding=0)


def loss(params, inputs, labels):
    """Labels lose their first row and column and are shrunk by 8; mean over those below 255."""
    labels = labels[:, 1:, 1:][:, ::8, ::8]
    valid = labels != 255
    log_probs = jax.nn.log_softmax(scores(params, inputs, training=True)[valid])
    return -log_probs[np.arange(valid.sum()), labels[valid]].mean()


def enlarge(scores):
    """Interp by 8 with aligned corners; then the first 7 and last 8 rows and columns are cut."""
    size = [8 * n - 7 for n in scores.shape[1:3]]
    enlarged = [reference.resize(np.asarray(map_), size, alignment="corners") for map_ in scores]
    return np.array(enlarged)[:, 7:-8, 7:-8]


@pytest.fixture(scope="module")
def variables(draw_variables):
    return draw_variables(MODEL)


def draw(number=2):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (number, CROP, CROP, 3), np.uint8)
    labels = rng.integers(0, 3, (number, CROP, CROP), np.uint8)
    labels[0, :12] = 255
    return images, labels, images[..., ::-1] - np.array(MEAN_BGR)


def named(tree):
    return {name: np.asarray(leaf, float) for name, leaf in flatten({"params": tree}).items()}


def test_scores_of_photographs_are_those_of_the_test_prototxt(variables):
    images, _, inputs = draw()
    found = MODEL.apply(variables, make_inputs(images), (CROP, CROP), method="full_size")
    with jax.enable_x64(True):
        defined = jax.jit(partial(scores, inputs=inputs, training=False))
        expected = enlarge(defined(named(variables["params"])))
    assert expected.shape == (2, CROP, CROP, 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.ptp(expected))


def test_two_updates_are_those_of_the_train_prototxt(variables):
    images, labels, inputs = draw()
    optimizer = optim.caffe_sgd(optim.step(1e-3, every=1, gamma=0.5))
    step = jax.jit(train.make_step(MODEL, optimizer, seed=0, batch_size=2, group_size=2))
    state = train.init_state(variables, optimizer)
    batch = Batch(images[None], labels[None], np.arange(2, dtype=np.int32)[None])
    start = params = named(variables["params"])
    multipliers = {
        name: ((10 if "fc8" in name else 1) * (1 + name.endswith("bias")), name.endswith("kernel"))
        for name in params
    }
    defined = jax.jit(jax.value_and_grad(partial(loss, inputs=inputs, labels=labels)))
    gradients = []
    for _ in range(2):
        state, values = step(state, batch)
        with jax.enable_x64(True):
            wanted, gradient = jax.device_get(defined(params))
        assert float(values["loss"]) == pytest.approx(wanted, rel=1e-5)
        gradients.append(gradient)
        solver = {"rates": [1e-3, 5e-4][: len(gradients)], "momentum": 0.9, "decay": 5e-4}
        params = reference.sgd(start, gradients, **solver, multipliers=multipliers)
    after = named(state.params)
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
    assert jax.eval_shape(small.apply, shapes, photograph).shape == (1, 67, 67, 21)
    assert evaluation.padded_size(small, (375, 500), 514) == (514, 514)
    assert evaluation.padded_size(small, (375, 500), None) == (378, 506)
