"""Small drawn photographs and unsure probabilities for the tests of the CRF."""

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


def features_of(image, params):
    return appearance_features(image[None], params)


def lattice_of(image, params=SMALL, normalization="symmetric"):
    points = np.ones(image[..., 0].size, bool), np.zeros(image[..., 0].size, np.int32)
    return kernels.host_lattice(features_of(image, params), *points, normalization)


def kernel_of(image, params=SMALL):
    return crf.Kernel(lattice_of(image, params), image.shape[:2])
