"""The fully connected CRF: lattice, filter, mean field, `refine`."""

import crf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import crf
from deeplab_jax.crf import filtering, inference, lattice, refinement

SMALL = crf.CRFParams(4.0, 20.0, 8.0, 3.0, 1.0)


def photograph(h=37, w=45, seed=0):
    """Smooth colour blobs with noise, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    phase = rng.uniform(0, 6, (3, 2))
    waves = [120 + 80 * np.sin(x / 9 + a) * np.cos(y / 7 + b) for a, b in phase]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 4, (h, w, 3)), 0, 255).astype(np.uint8)


def scores(h=37, w=45, c=5, seed=1):
    """Blocks of 8 pixels with an unsure favourite label each, float32."""
    rng = np.random.default_rng(seed)
    block = rng.dirichlet(np.ones(c), (h // 8 + 1, w // 8 + 1)).repeat(8, 0).repeat(8, 1)[:h, :w]
    return (0.6 * block + 0.4 / c).astype(np.float32)


def pixels_of(image, valid=None):
    valid = np.ones(image.shape[:2], bool) if valid is None else valid
    return inference.flatten(jnp.asarray(image)[None], jnp.asarray(valid)[None])


@pytest.fixture(scope="module")
def appearance():
    """Vertices and lattice of one small photograph."""
    pixels = pixels_of(photograph())
    vertices = jax.jit(inference.appearance_vertices, static_argnums=2)(pixels, SMALL, 1)
    return vertices, refinement.tight_kernel(vertices, "symmetric")


def test_vertices_are_those_of_unfused_float32_arithmetic(appearance):
    vertices, _ = appearance
    features = np.asarray(inference.appearance_features(pixels_of(photograph()), SMALL))
    expected, _ = reference.simplex(features)
    unique = np.unique(expected.transpose(0, 2, 1).reshape(-1, 5), axis=0)
    assert int(vertices.num_vertices) == len(unique)


@pytest.mark.parametrize("normalization", ["symmetric", "per_pixel"])
@pytest.mark.parametrize("params", [SMALL, crf.RESNET101], ids=["smooth", "textured"])
def test_marginals_are_those_of_pydensecrf(params, normalization):
    pytest.importorskip("pydensecrf")
    image, probs = photograph(), scores()
    ours = crf.refine(image, probs, params, normalization=normalization)
    theirs = crf.refine(image, probs, params, normalization=normalization, backend="pydensecrf")
    assert (theirs.argmax(-1) != probs.argmax(-1)).mean() > 0.03
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def test_wrong_shapes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(37, 45, 3\).*\(37, 44, 5\)"):
        crf.refine(photograph(), scores(w=44))


def test_nan_is_refused():
    probs = scores()
    probs[3, 4, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        crf.refine(photograph(), probs)
