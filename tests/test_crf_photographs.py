"""The CRF against pydensecrf on real photographs, with unsure probabilities.

They lie in the folder that the environment variable DEEPLAB_JAX_DATA names: `voc2012_animals` in
PASCAL VOC's layout and `pydensecrf_examples`, that project's photographs, annotations and
recorded results.
"""

import os
from dataclasses import replace
from pathlib import Path

import crf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from deeplab_jax import crf
from deeplab_jax.crf import kernels
from deeplab_jax.crf.features import appearance_features, positions
from deeplab_jax.types import IGNORE_LABEL

DATA = Path(os.environ.get("DEEPLAB_JAX_DATA", "not given"))
PARAMS = [
    *((67, 3, 4), (30, 3, 4), (100, 3, 4), (50, 5, 4)),
    *((67, 6, 4), (80, 13, 10), (49, 3, 4), (121, 5, 4)),
]
CLASSES = 21

pytestmark = [
    pytest.mark.usefixtures("users_compilation"),
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (DATA / "pydensecrf_examples").is_dir(),
        reason="DEEPLAB_JAX_DATA names no folder with pydensecrf_examples and voc2012_animals",
    ),
]


def unsure(labels, rng):
    """Probabilities around a spoilt annotation: stride 8, blurred, a fifth of its blocks wrong."""
    h, w = labels.shape
    coarse = labels[::8, ::8].repeat(8, 0).repeat(8, 1)[:h, :w].copy()
    for y in range(0, h, 32):
        for x in range(0, w, 32):
            if rng.random() < 0.2:
                coarse[y : y + 32, x : x + 32] = rng.integers(CLASSES)
    one_hot = (coarse[..., None] == np.arange(CLASSES)).astype(float)
    for axis in (0, 0, 1, 1):
        one_hot = ndimage.uniform_filter1d(one_hot, 15, axis, mode="nearest", origin=-1)
    probs = 0.65 * one_hot / one_hot.sum(-1, keepdims=True) + 0.35 / CLASSES
    assert probs.max() <= 0.7
    return probs.astype(np.float32)


def example(number):
    folder = DATA / "pydensecrf_examples"
    image = np.array(Image.open(folder / f"im{number}.png").convert("RGB"))
    colors = np.array(Image.open(folder / f"anno{number}.png").convert("RGB")).reshape(-1, 3)
    labels = np.unique(colors, axis=0, return_inverse=True)[1].reshape(image.shape[:2])
    return image, labels


def voc(index):
    folder = DATA / "voc2012_animals"
    name = (folder / "ImageSets/Segmentation/val.txt").read_text().split()[index * 7]
    image = np.array(Image.open(folder / f"JPEGImages/{name}.jpg").convert("RGB"))
    labels = np.array(Image.open(folder / f"SegmentationClass/{name}.png"))
    return image, np.where(labels == IGNORE_LABEL, 0, labels)


def in_float64(image, probs, params, normalization):
    """Mean field on the same lattices with every sum in float64."""
    h, w, c = probs.shape
    points = np.ones(h * w, bool), np.zeros(h * w, np.int32)
    features = [
        appearance_features(image[None], params),
        positions((1, h, w), params.sigma_smoothness),
    ]
    lattices = [kernels.host_lattice(f, *points, "none") for f in features]
    weights = [float(params.appearance_weight), float(params.smoothness_weight)]
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64) if x.dtype == jnp.float32 else x, lattices
        )
        exact = [
            kernels.compiled_normalize(lattice, normalization=normalization) for lattice in wide
        ]
        unary = -jnp.log(jnp.asarray(probs, jnp.float64))
        made = [crf.Kernel(lattice, (h, w)) for lattice in exact]
        run = jax.jit(lambda unary: crf.mean_field(unary, made, weights, 10))
        return np.asarray(run(unary))


PHOTOGRAPHS = [*((example, number) for number in (1, 2, 3)), *((voc, index) for index in range(20))]


@pytest.mark.parametrize(("photograph", "number"), PHOTOGRAPHS)
def test_labels_and_marginals_are_pydensecrfs_but_for_rounding(photograph, number):
    """Of every parameter set and both normalizations."""
    image, labels = photograph(number)
    probs = unsure(labels, np.random.default_rng(number))
    for sigma_xy, sigma_rgb, weight in PARAMS:
        params = crf.CRFParams(weight, sigma_xy, sigma_rgb)
        for normalization in ("symmetric", "per_pixel"):
            options = {"params": params, "normalization": normalization}
            ours = crf.refine(image, probs, **options)
            theirs = crf.refine(image, probs, backend="pydensecrf", **options)
            changed = (theirs.argmax(-1) != probs.argmax(-1)).mean()
            difference = np.abs(ours - theirs).max()
            assert changed >= 0.03
            reference.assert_same_labels(ours, theirs)
            if difference > 1e-5:
                exact = in_float64(image, probs, params, normalization)
                bistable = is_bistable(image, probs, ours, theirs, options)
                # In two of the photographs pydensecrf's rounding alone makes the difference.
                assert bistable or np.abs(ours - exact).max() < 0.1 * difference
                assert_rounding(ours, theirs, exact)


def is_bistable(image, probs, ours, theirs, options):
    """Whether pydensecrf's marginals, where ours differ by more than 1e-5, move as far, or nearly
    so, when its probabilities move by 1e-7, or a standard deviation by that part of it."""

    def moved_by(probs, params):
        again = crf.refine(image, probs, backend="pydensecrf", **options | {"params": params})
        return np.abs(again - theirs).max(-1)

    params = options["params"]
    moves = []
    for seed in range(4):
        change = np.random.default_rng(seed).choice([-1e-7, 1e-7], probs.shape)
        moves.append(moved_by(probs + change.astype("f4"), params))
    for factor in (1 - 1e-7, 1 + 1e-7):
        for name in ("sigma_xy", "sigma_rgb"):
            changed = replace(params, **{name: factor * getattr(params, name)})
            moves.append(moved_by(probs, changed))
    moved = np.max(moves, axis=0)
    difference = np.abs(ours - theirs).max(-1)
    apart = difference > 1e-5
    return moved[apart].max() > 0.3 * difference.max()


def assert_rounding(ours, theirs, exact):
    """Few pixels stand so near the edge between two answers that rounding grows a thousandfold.

    There neither float32 result is the other's measure; on the whole ours is nearer to float64.
    """
    errors, their_errors = np.abs(ours - exact), np.abs(theirs - exact)
    assert (errors > 1e-5).any(-1).mean() <= 1e-4
    assert errors.max() <= 3e-4
    assert errors.mean() <= their_errors.mean()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_recorded_results_of_the_examples(number):
    """Recorded with 5 iterations, colours read as BGR, a label with 0.7 where annotated."""
    folder = DATA / "pydensecrf_examples"
    image, _ = example(number)
    colors = np.array(Image.open(folder / f"anno{number}.png").convert("RGB")).astype(int)
    code = colors @ [1, 256, 65536]
    found, labels = np.unique(code, return_inverse=True)
    labels = labels.reshape(code.shape)
    unknown = int(found[0] == 0)
    num_labels = len(found) - unknown
    probs = np.full((*code.shape, num_labels), 0.3 / (num_labels - 1), np.float32)
    np.put_along_axis(probs, np.maximum(labels - unknown, 0)[..., None], 0.7, axis=-1)
    probs[(code == 0) if unknown else np.zeros_like(code, bool)] = 1 / num_labels
    params = crf.CRFParams(10.0, 80.0, 13.0, 3.0, 3.0)
    recorded = np.array(Image.open(folder / f"out{number}.png").convert("RGB")) @ [1, 256, 65536]
    agreement = {}
    for backend in ("jax", "pydensecrf"):
        marginals = crf.refine(image[..., ::-1], probs, params, num_iterations=5, backend=backend)
        agreement[backend] = (found[unknown:][marginals.argmax(-1)] == recorded).mean()
    assert agreement["pydensecrf"] > 0.998
    assert agreement["jax"] > agreement["pydensecrf"] - 0.0005
