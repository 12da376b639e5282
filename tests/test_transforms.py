import numpy as np
import pytest
import reference

from deeplab_jax.data import transforms
from deeplab_jax.types import IGNORE_LABEL


def photograph(height: int, width: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.integers(0, 21, (height, width), np.uint8)


def augment(image, labels, seed=0, **changes):
    options = {"crop_size": 33, "scales": (1.0,), "flip": True, **changes}
    return transforms.augment(image, labels, rng=np.random.default_rng(seed), **options)


@pytest.mark.parametrize("factor", [0.01, 0.5, 0.75, 1.0, 1.25, 1.7])
def test_a_crop_is_the_photograph_scaled_padded_cut_and_flipped(factor):
    """In the order of the authors' loader, each step for itself."""
    image, labels = photograph(45, 71)
    size = max(int(45 * factor), 1), max(int(71 * factor), 1)
    padded = tuple(max(n, 40) for n in size)
    scaled_image = np.full((*padded, 3), transforms.MEAN_COLOUR, float)
    scaled_image[: size[0], : size[1]] = reference.resize(image, size, alignment="half_pixel")
    scaled_labels = np.full(padded, IGNORE_LABEL)
    scaled_labels[: size[0], : size[1]] = labels[
        np.ix_(*(np.arange(n) * m // n for n, m in zip(size, (45, 71), strict=True)))
    ]
    for seed in range(6):
        found_image, found_labels = augment(image, labels, seed, crop_size=40, scales=(factor,))
        rng = np.random.default_rng(seed)
        rng.integers(1)
        place, flip = rng.random(2), rng.random() < 0.5
        top, left = (int(u * (n - 40 + 1)) for u, n in zip(place, padded, strict=True))
        window = slice(top, top + 40), slice(left, left + 40)
        step = -1 if flip else 1
        np.testing.assert_array_equal(found_labels, scaled_labels[window][:, ::step])
        assert np.abs(found_image - scaled_image[window][:, ::step]).max() < 1 + 1e-2


def test_every_offset_of_the_crop_is_equally_likely():
    labels = np.arange(5 * 4, dtype=np.uint8).reshape(5, 4)
    image = np.repeat(labels[..., None], 3, 2)
    corners = [
        augment(image, labels, seed, crop_size=3, flip=False)[1][0, 0] for seed in range(1200)
    ]
    values, counts = np.unique(corners, return_counts=True)
    assert values.tolist() == [0, 1, 4, 5, 8, 9]
    assert counts.min() > 150  # 200 expected, standard deviation 13


def test_half_of_the_crops_are_flipped_and_none_without_the_option():
    image, labels = photograph(33, 33)
    kept = [(augment(image, labels, seed)[1] == labels).all() for seed in range(400)]
    assert 160 < sum(kept) < 240  # 200 expected, standard deviation 10
    assert all((augment(image, labels, s, flip=False)[1] == labels).all() for s in range(20))


def test_every_scale_is_drawn():
    labels = np.zeros((20, 20), np.uint8)
    image = np.zeros((20, 20, 3), np.uint8)
    sizes = {
        int((augment(image, labels, seed, crop_size=40, scales=(0.5, 1.0, 1.5))[1] == 0).sum())
        for seed in range(40)
    }
    assert sizes == {10 * 10, 20 * 20, 30 * 30}
