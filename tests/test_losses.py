import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

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


def weights(labels, *, group_size, sample=None, batch_size=None):
    counts = losses.count_valid(jnp.asarray(labels))
    sample = jnp.arange(len(labels)) if sample is None else jnp.asarray(sample)
    return losses.photograph_weights(
        counts,
        sample,
        group_size=group_size,
        batch_size=batch_size or len(labels),
        axis_name=None,
    )


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


def test_a_group_without_labelled_pixels_has_no_loss_and_no_gradient():
    logits, labels = draw(photographs=2)
    labels[:] = IGNORE_LABEL
    weight = weights(labels, group_size=1)
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits), labels, weight)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_crops_that_fill_a_device_weigh_nothing():
    _, labels = draw(photographs=3)
    filled = np.concatenate([labels, labels[:1]])  # even where the filler has labels
    found = weights(filled, group_size=3, sample=[0, 1, 2, -1], batch_size=3)
    np.testing.assert_array_equal(found[:3], weights(labels, group_size=3))
    assert found[3] == 0


def test_weights_belong_to_photographs_wherever_they_lie():
    _, labels = draw(photographs=4)
    there = weights(labels, group_size=2)
    order = np.array([2, 0, 3, 1])
    moved = weights(labels[order], group_size=2, sample=order)
    np.testing.assert_array_equal(moved, there[order])


def test_extreme_scores_stay_finite():
    logits = jnp.array([1e4, -1e4, 0.0]).reshape(1, 1, 1, 3)
    assert losses.cross_entropy(logits, jnp.array([[[1]]])) == pytest.approx(2e4)


def test_label_maps_of_the_release_are_every_8th_and_16th_label():
    sizes = [(41, 41), (41, 41), (41, 41), (21, 21)]
    labels = np.random.default_rng(0).integers(0, 21, (1, 321, 321), np.uint8)
    found = losses.label_maps(jnp.asarray(labels), sizes, alignment="corners")
    for target, stride in zip(found, (8, 8, 8, 16), strict=True):
        np.testing.assert_array_equal(target, labels[:, ::stride, ::stride])
