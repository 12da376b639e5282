"""Small drawn photographs, unsure probabilities and labels for the tests of the CRF."""

import numpy as np

from deeplab_jax import crf
from deeplab_jax.crf import kernels
from deeplab_jax.crf.features import appearance_features

SMALL = crf.CRFParams(4.0, 20.0, 8.0, 3.0, 1.0)
H, W, C = 21, 23, 5  # 483 pixels: no multiple of 4, to which pydensecrf pads


def photograph(h=H, w=W, seed=0):
    """Smooth colour blobs with a little noise, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    waves = [120 + 80 * np.sin(x / 9 + a) * np.cos(y / 7 + b) for a, b in rng.uniform(0, 6, (3, 2))]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 4, (h, w, 3)), 0, 255).astype(np.uint8)


def scores(h=H, w=W, c=C, seed=1):
    """Blocks of 8 pixels with an unsure favourite each, float32."""
    rng = np.random.default_rng(seed)
    blocks = rng.dirichlet(np.ones(c), (h // 8 + 1, w // 8 + 1))
    return (0.6 * blocks.repeat(8, 0).repeat(8, 1)[:h, :w] + 0.4 / c).astype(np.float32)


def two_halves(h=24, w=32, seed=0, ids=(1, 4)):
    """A photograph whose halves differ in colour, and its labels: an id for each half."""
    right = np.tile(np.arange(w) >= w // 2, (h, 1))
    noise = np.random.default_rng(seed).normal(0, 5, (h, w, 3))
    image = np.clip(90 + 90 * right[..., None] + noise, 0, 255).astype(np.uint8)
    return image, np.where(right, ids[1], ids[0]).astype(np.uint8)


def features_of(image, params):
    return appearance_features(image[None], params)


def lattice_of(image, params=SMALL, normalization="symmetric"):
    points = np.ones(image[..., 0].size, bool), np.zeros(image[..., 0].size, np.int32)
    return kernels.host_lattice(features_of(image, params), *points, normalization)


def lattice_matrix(features, normalization="symmetric"):
    """The kernel of points as a matrix: what its filter makes of the identity."""
    made = crf.kernel(features, normalization=normalization)
    return np.asarray(crf.filter(made, np.eye(len(features), dtype=np.float32)), float)
