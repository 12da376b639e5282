"""The dense CRF loss against its definition, pair by pair in float64."""

from functools import partial

import crf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_drawings import lattice_matrix, photograph
from reference import bilinear

from deeplab_jax import losses
from deeplab_jax.crf.loss import dense_crf_loss
from deeplab_jax.types import UserError

SIGMAS = {"sigma_xy": 10.0, "sigma_rgb": 15.0}
NOISE = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
IMAGES = np.stack([photograph(30, 40, seed) for seed in (0, 1)])
PROBS = np.random.default_rng(1).dirichlet(np.ones(3), IMAGES.shape[:3])


def kernel_matrix(image, *, exact):
    """Of all pairs of pixels, or what the lattice has in its place."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    parts = [np.stack([x, y], -1) / SIGMAS["sigma_xy"], image / SIGMAS["sigma_rgb"]]
    features = np.concatenate(parts, -1).reshape(-1, 5)
    if exact:
        return reference.dense_kernel(features.T)
    return lattice_matrix(features.astype(np.float32), "none")


def by_definition(images, probs, *, exact):
    """Value and gradient: the mean over photographs of the sum over k of S_k' K (1 - S_k)."""
    value, gradient = 0.0, np.zeros_like(probs)
    for image, s, g in zip(images, probs, gradient, strict=True):
        k, s = kernel_matrix(image, exact=exact), s.reshape(-1, s.shape[-1])
        value += sum(one @ k @ (1 - one) for one in s.T)
        g[...] = (k @ (1 - s) - k.T @ s).reshape(g.shape)
    return value / len(probs), gradient / len(probs)


def through_softmax(gradient, probs=PROBS):
    """The gradient to logits, which is the same whether or not the loss knows that S sums to 1."""
    return probs * (gradient - (gradient * probs).sum(-1, keepdims=True))


@pytest.mark.parametrize(("exact", "rtol"), [(True, 1e-6), (False, 1e-5)])
def test_value_and_gradient_are_those_of_the_definition(exact, rtol):
    expected, gradient = by_definition(IMAGES, PROBS, exact=exact)
    with jax.enable_x64(True):
        loss = partial(dense_crf_loss, IMAGES, exact=exact, **SIGMAS)
        value, found = jax.value_and_grad(loss)(jnp.asarray(PROBS))
        np.testing.assert_allclose(value, expected, rtol=rtol)
        found, gradient = map(through_softmax, (np.asarray(found), gradient))
        assert np.abs(found - gradient).max() < rtol * np.abs(gradient).max()


def test_the_lattice_differs_from_the_definition_by_what_its_docstring_says():
    values, gradients = [], []
    for exact in (True, False):
        loss = partial(dense_crf_loss, IMAGES, exact=exact, **SIGMAS)
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(PROBS, jnp.float32))
        values.append(float(value))
        gradients.append(through_softmax(gradient))
    assert 0.45 < values[1] / values[0] < 0.6
    scaled = gradients[0] * values[1] / values[0]
    assert np.linalg.norm(gradients[1] - scaled) < 0.15 * np.linalg.norm(scaled)


@pytest.mark.parametrize("images", [IMAGES, NOISE], ids=["smooth", "noise"])
def test_inside_jit_the_loss_is_the_same_however_many_vertices_there_are(images):
    # Noise has six vertices a pixel then.
    options = SIGMAS if images is IMAGES else SIGMAS | {"sigma_rgb": 3.0}
    probs = PROBS.astype(np.float32)
    expected = jax.value_and_grad(partial(dense_crf_loss, images, **options))(probs)
    found = jax.jit(jax.value_and_grad(partial(dense_crf_loss, **options), argnums=1))(
        images, probs
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("exact", [False, True])
def test_pixels_and_photographs_that_are_not_valid_count_nothing(exact):
    valid = np.zeros(IMAGES.shape[:3], bool)
    valid[0, :20, :25] = True
    probs = PROBS.astype(np.float32)
    options = {"exact": exact, **SIGMAS}
    alone = dense_crf_loss(IMAGES[:1, :20, :25], probs[:1, :20, :25], **options)
    for images in (IMAGES, NOISE * ~valid[..., None] + IMAGES * valid[..., None]):
        found, gradient = jax.value_and_grad(
            lambda p, x=images: dense_crf_loss(x, p, valid=valid, **options)
        )(jnp.asarray(probs))
        np.testing.assert_allclose(found, alone, rtol=1e-5)
        assert np.all(gradient[~valid] == 0)


def test_the_batch_loss_enlarges_the_logits_and_leaves_padding_out():
    logits = jnp.float32(np.random.default_rng(3).normal(size=(2, 5, 6, 4)))
    inputs = IMAGES[:, :33, :40].astype(np.float32) - 110.5
    inputs = np.pad(inputs, ((0, 0), (0, 3), (0, 1), (0, 0)))  # a crop of 33 x 41, padded by 0
    inputs[1] = 0  # a crop of no photograph
    options = {"sigma_xy": 20.0, "sigma_rgb": 15.0, "alignment": "corners"}
    found = losses.dense_crf(logits, None, inputs, weight=0.5, scale=0.5, **options)
    rows, columns = (np.linspace(0, n - 1, m) for n, m in ((5, 17), (6, 21)))
    enlarged = bilinear(np.asarray(logits[0]), rows, columns)[None]
    probs = reference.softmax(enlarged).astype(np.float32)
    valid = np.zeros((1, 17, 21), bool)
    valid[:, :15, :20] = True
    image = inputs[:1, ::2, ::2]
    expected = dense_crf_loss(image, probs, valid=valid, sigma_xy=10.0, sigma_rgb=15.0)
    np.testing.assert_allclose(found, 0.5 * expected, rtol=1e-4)


def test_what_cannot_be_compared_is_one_sentence():
    with pytest.raises(UserError, match=r"1 to 6 channels.*got \(2, 30, 40, 3\) and \(2, 30, 39"):
        dense_crf_loss(IMAGES, PROBS[:, :, :39])
    with pytest.raises(UserError, match="sigma_rgb must be above 0"):
        dense_crf_loss(IMAGES, PROBS, sigma_rgb=0.0)
