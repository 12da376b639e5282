import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from scipy.special import softmax

from deeplab_jax import losses
from deeplab_jax.types import IGNORE_LABEL


def draw(photographs=3, size=5, classes=4, seed=0):
    """Logits and labels; photograph i has i rows of ignored pixels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(photographs, size, size, classes)).astype(np.float32) * 3
    labels = rng.integers(0, classes, (photographs, size, size), np.uint8)
    for i in range(photographs):
        labels[i, :i] = IGNORE_LABEL
    return logits, labels


def weights(labels, *, group_size):
    counts = losses.count_valid(jnp.asarray(labels))
    shared = {"group_size": group_size, "batch_size": len(labels), "axis_name": None}
    return losses.photograph_weights(counts, jnp.arange(len(labels)), **shared)


@jax.jit
def loss(logits, labels, weight):
    return losses.weighted_loss([jnp.asarray(logits)], [jnp.asarray(labels)], [weight])


def test_the_loss_of_an_update_is_the_mean_over_its_labelled_pixels():
    logits, labels = draw()
    found = loss(logits, labels, weights(labels, group_size=3))
    np.testing.assert_allclose(found, reference.mean_cross_entropy(logits, labels), rtol=1e-5)
    valid = jnp.asarray(labels != IGNORE_LABEL)
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, labels * valid)
    np.testing.assert_allclose(found, theirs[valid].mean(), rtol=1e-5)


def test_the_loss_of_micro_batches_is_the_mean_of_their_means():
    logits, labels = draw(photographs=4)
    found = loss(logits, labels, weights(labels, group_size=2))
    pairs = [reference.mean_cross_entropy(logits[i : i + 2], labels[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(found, np.mean(pairs), rtol=1e-5)
    whole = reference.mean_cross_entropy(logits, labels)
    assert abs(found - whole) > 1e-3  # the two normalisations are two functions


def test_weights_of_photographs_keep_64_bits():
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = weights(draw()[1], group_size=3)
    np.testing.assert_array_equal(found, np.full(3, 1 / 60))


CLASS_WEIGHTS = np.array([0.5, 3.0, 1.0, 7.0])


def focal_by_definition(logits, labels):
    """The sum of -w[y] (1 - p[y])^2 log p[y] over the labelled pixels, one at a time."""
    found = 0.0
    for place, label in np.ndenumerate(labels):
        if label != IGNORE_LABEL:
            p = softmax(logits[place])[label]
            found -= CLASS_WEIGHTS[label] * (1 - p) ** 2 * np.log(p)
    return found


def by_class(logits, labels, of_class):
    """The mean over the classes in the labels of `of_class(probabilities, which are it)`."""
    valid = labels != IGNORE_LABEL
    probs, truth = softmax(logits, axis=-1)[valid], labels[valid]
    return np.mean([of_class(probs[:, c], truth == c) for c in np.unique(truth)])


def dice_by_definition(logits, labels):
    return by_class(logits, labels, lambda p, y: 1 - 2 * (p * y).sum() / (p.sum() + y.sum()))


def lovasz_by_definition(logits, labels):
    """The Lovasz extension of the set function: mispredicted pixels -> 1 - Jaccard index."""

    def jaccard_loss(wrong, truth):
        return 1 - len(truth - wrong) / len(truth | wrong)

    def of_class(probs, is_class):
        truth = set(np.flatnonzero(is_class).tolist())
        errors = np.where(is_class, 1 - probs, probs)
        wrong, total = set(), 0.0
        for pixel in sorted(range(len(errors)), key=lambda i: -errors[i]):
            grown = wrong | {pixel}
            total += errors[pixel] * (jaccard_loss(grown, truth) - jaccard_loss(wrong, truth))
            wrong = grown
        return total

    return by_class(logits, labels, of_class)


@jax.jit
def sum_of_focal(logits, labels):
    focal = partial(losses.focal, class_weights=CLASS_WEIGHTS)
    return losses.weighted_loss([logits], [labels], [jnp.ones(len(logits))], focal)


DEFINITIONS = {
    "focal": (sum_of_focal, focal_by_definition),
    "dice": (jax.jit(losses.dice), dice_by_definition),
    "lovasz": (jax.jit(losses.lovasz_softmax), lovasz_by_definition),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_loss_and_its_gradient_are_those_of_its_definition(name):
    """The gradient against difference quotients at 30 places."""
    ours, definition = DEFINITIONS[name]
    for seed in (2, 1, 0):
        logits, labels = draw(seed=seed)
        logits, labels[labels == 3] = logits.astype(np.float64), 1  # one class is absent
        expected = definition(logits, labels)
        with jax.enable_x64(True):
            exact = jnp.asarray(logits), jnp.asarray(labels)
            found, gradient = jax.jit(jax.value_and_grad(ours))(*exact)
            assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        found = ours(jnp.float32(logits), jnp.asarray(labels))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    for place in np.random.default_rng(0).integers(0, logits.size, 30):
        step = np.zeros(logits.shape)
        step.flat[place] = 1e-6
        above, below = (definition(logits + sign * step, labels) for sign in (1, -1))
        found = np.ravel(gradient)[place]
        np.testing.assert_allclose(found, (above - below) / 2e-6, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_ignored_pixels_count_nothing(name):
    ours, _ = DEFINITIONS[name]
    logits, labels = map(jnp.asarray, draw())
    ignored = (labels == IGNORE_LABEL)[..., None]
    other = jnp.where(ignored, -20 * logits[..., ::-1], logits)
    value, gradient = jax.value_and_grad(ours)(logits, labels)
    other_value, other_gradient = jax.value_and_grad(ours)(other, labels)
    assert value == other_value
    for found in (gradient, other_gradient):
        np.testing.assert_array_equal(jnp.where(ignored, found, 0), 0)
    everything = jnp.full_like(labels, IGNORE_LABEL)
    nothing, no_gradient = jax.value_and_grad(ours)(logits, everything)
    assert nothing == 0
    np.testing.assert_array_equal(no_gradient, 0)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_extreme_scores_leave_loss_and_gradient_finite(name):
    logits = jnp.array([[1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 0.0, 0.0]]).reshape(1, 1, 2, 4)
    value, gradient = jax.value_and_grad(DEFINITIONS[name][0])(logits, jnp.array([[[0, 0]]]))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert losses.cross_entropy(logits, jnp.array([[[1, 1]]])).max() == pytest.approx(2e4)
