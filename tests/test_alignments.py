"""The alignments `cells` and `ports` against definitions of their own, and what they are for."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from PIL import Image as PILImage

from deeplab_jax import losses, train
from deeplab_jax.models.deeplab import build
from deeplab_jax.ops import resize


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def moved(scores, size):
    """Pixel x is the mean of the linear interpolation at x / 8 - 1/16 and x / 8 + 1/16."""
    sides = [[[x / 8 + d for x in range(n)] for d in (-1 / 16, 1 / 16)] for n in size]
    moved = [reference.bilinear(scores, *pair) for pair in product(*sides)]
    return np.mean(moved, axis=0)


ENLARGED = [((5, 3), (33, 17)), ((5, 3), (40, 18)), ((1, 1), (3, 8))]


@pytest.mark.parametrize(("cells", "size"), ENLARGED)
def test_cells_are_enlarged_exactly_8_times_and_moved_to_where_they_look(cells, size):
    scores = draw(*cells, 2)
    found = resize.enlarge(jnp.asarray(scores[None]), size, alignment="cells")[0]
    np.testing.assert_allclose(found, moved(scores, size), rtol=0, atol=1e-5)


def test_a_ramp_of_cells_is_a_ramp_of_pixels():
    """Aligned corners have it exactly; half pixels are off by up to 3.5 pixels."""
    ramp = 8.0 * jnp.arange(5)[None, :, None, None] + jnp.zeros((1, 5, 2, 1))
    found = np.asarray(resize.enlarge(ramp, (33, 9), alignment="cells"))[0, :, 0, 0]
    np.testing.assert_allclose(found[1:-1], np.arange(1, 32), atol=1e-4)
    np.testing.assert_allclose(found[[0, -1]], [0.25, 31.75], atol=1e-4)  # the border is repeated
    half = resize.enlarge(ramp, (33, 9), alignment="half_pixel")[0, :, 0, 0]
    assert np.abs(half[4:-4] - np.arange(4, 29)).max() > 2


@pytest.mark.parametrize("size", [33, 40, 41, 65, 72, 320, 321])
def test_labels_of_cells_are_every_8th_and_16th_pixel(size):
    """A map may have a cell that looks behind the last pixel; it has the last one's label."""
    model = build(3, stage_sizes=(1, 1, 1, 1), width=1, aspp_rates=(1,), scales=(1.0, 0.5))
    model = model.clone(alignment="cells")
    maps = train.map_sizes(model, train.variable_shapes(model), (size, size))
    assert len(maps) == 3
    labels = np.arange(size * size).reshape(1, size, size)
    for (cells, _), step in zip(maps, (8, 8, 16), strict=True):
        found = resize.subsample_labels(jnp.asarray(labels), (cells, cells), alignment="cells")
        places = [min(step * i, size - 1) for i in range(cells)]
        np.testing.assert_array_equal(found[0], labels[0][np.ix_(places, places)])


def test_cells_of_a_smaller_photograph_are_centred_on_their_pixels():
    """Cell i of a photograph at scale 0.75 looks at pixel 8i / 0.75."""
    scores = draw(4, 4, 1)
    found = resize.enlarge(jnp.asarray(scores[None]), (40, 33), alignment="cells", scale=0.75)[0]
    sides = [[x * 0.75 / 8 for x in range(n)] for n in (40, 33)]
    np.testing.assert_allclose(found, reference.bilinear(scores, *sides), rtol=0, atol=2e-5)


def nearest_by_pillow(labels, size):
    picture = PILImage.fromarray(labels)
    return np.asarray(picture.resize(size[::-1], PILImage.Resampling.NEAREST))


def test_losses_of_the_ports_are_those_of_maps_of_their_own_sizes(draw_variables):
    """1, 0.75 and 0.5 at their own sizes, and the fused map, each against labels of its size."""
    fields = {"stage_sizes": (1, 1, 1, 1), "width": 4, "aspp_rates": (1, 2)}
    ports, ours = (build(3, **fields, alignment=name) for name in ("ports", "half_pixel"))
    variables, inputs = draw_variables(ports), jnp.asarray(60 * draw(1, 65, 65, 3))
    maps, old = (m.apply(variables, inputs, method="score_maps") for m in (ports, ours))
    assert [m.shape[1] for m in maps] == [9, 9, 7, 5]
    assert [m.shape[1] for m in old] == [9, 9, 9, 5]
    large = [reference.resize(np.asarray(m[0]), (9, 9), alignment="half_pixel") for m in maps[1:]]
    np.testing.assert_allclose(maps[0][0], np.max(large, axis=0), rtol=0, atol=1e-4)
    labels = np.random.default_rng(1).integers(0, 3, (65, 65), np.uint8)
    sizes = [m.shape[1:3] for m in maps]
    targets = losses.label_maps(jnp.asarray(labels[None]), sizes, alignment="ports")
    weights = [jnp.ones(1) / np.prod(size) for size in sizes]
    found = jax.jit(losses.weighted_loss)(maps, targets, weights)
    expected = sum(
        reference.mean_cross_entropy(np.asarray(m), nearest_by_pillow(labels, m.shape[1:3])[None])
        for m in maps
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)
