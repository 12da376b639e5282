"""Large photographs at a smaller scale."""

from dataclasses import replace

import numpy as np
import pytest
from crf_drawings import SMALL, photograph, scores

from deeplab_jax import crf
from deeplab_jax.crf import refinement, upsampling
from deeplab_jax.types import UserError


@pytest.mark.parametrize("shape", [(3000, 4000), (6000, 8000), (1000, 1001), (7, 100)])
def test_the_factor_is_the_smallest_that_suffices(shape):
    def size(factor):
        return -(-shape[0] // factor) * -(-shape[1] // factor)

    factor = upsampling.factor_for(shape, 600)
    assert size(factor) <= 600 < size(factor - 1)


def test_upsampling_follows_a_slanted_edge_that_the_small_image_cannot_show():
    y, x = np.mgrid[:90, :120]
    truth = (x + 0.37 * y > 70).astype(int)
    image = np.where(truth[..., None] == 1, [200, 60, 40], [30, 90, 160]).astype(np.uint8)
    one_hot = np.eye(2)[truth]
    small, values = (upsampling.block_means(a, 5) for a in (image, one_hot))
    labels = upsampling.upsample(image, small, values, 5, 12.0, labels=True)
    blocks = values.argmax(-1).repeat(5, 0).repeat(5, 1)
    assert (labels != truth).mean() < 0.002 < (blocks != truth).mean() / 5


def test_upsampled_marginals_are_a_mean_of_the_small_ones():
    image = photograph(70, 40)
    small = upsampling.block_means(image, 4)
    probs = np.random.default_rng(0).dirichlet(np.ones(3), small.shape[:2]).astype(np.float32)
    result = upsampling.upsample(image, small, probs, 4, 8.0)
    np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)
    uniform = upsampling.upsample(image, small, np.full_like(probs, 0.25), 4, 8.0)
    np.testing.assert_allclose(uniform, 0.25, atol=1e-6)


def test_a_smaller_scale_gives_nearly_the_labels_of_the_full_one():
    image, probs = photograph(63, 66), scores(63, 66, 2)
    params = replace(SMALL, sigma_smoothness=3.0)
    full = crf.refine(image, probs, params)
    small = crf.refine(image, probs, params, max_pixels=1500)
    assert small.shape == full.shape and small.dtype == np.float32
    agreement = (small.argmax(-1) == full.argmax(-1)).mean()
    assert agreement > 0.9
    np.testing.assert_array_equal(crf.refine(image, probs, params, max_pixels=4158), full)


def test_too_little_memory_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(refinement, "free_memory", lambda: 2**19)
    with pytest.raises(UserError, match=r"GiB and 0 GiB are free: pass max_pixels"):
        crf.refine(photograph(), scores(), SMALL)


@pytest.mark.parametrize("max_pixels", [0.5, 0, True])
def test_max_pixels_is_a_whole_number(max_pixels):
    with pytest.raises(UserError, match="max_pixels is a whole number"):
        upsampling.factor_for((9, 9), max_pixels)
