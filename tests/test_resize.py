"""Resizing on every platform, and the alignments `cells` and `ports`, against definitions."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from PIL import Image as PILImage

from deeplab_jax import losses, train
from deeplab_jax.models.deeplab import build
from deeplab_jax.ops import resize, resize_gpu, xla

CORNERS = {"scale": (20 / 8, 12 / 10), "translation": (0.5 - 10 / 8, 0.5 - 6 / 10)}
CASES = {
    "enlarge": ((9, 11), (21, 13), {"scale": (21 / 9, 13 / 11)}),
    "enlarge eight times": ((6, 5), (41, 40), {"scale": (41 / 6, 40 / 5)}),
    "shrink": ((13, 20), (7, 10), {"scale": (7 / 13, 10 / 20)}),
    "corners": ((9, 11), (21, 13), CORNERS),
    "rescale by 0.75": ((21, 33), (15, 24), {"scale": (0.75, 0.75)}),
    "one row": ((1, 3), (4, 1), {"scale": (4.0, 1 / 3)}),
    "outside": ((5, 5), (9, 9), {"scale": (1.0, 1.25), "translation": (2.0, -3.0)}),
    "same size": ((5, 6), (5, 6), {"scale": (1.0, 1.0)}),
}


def definition(x, size, *, scale, translation=(0.0, 0.0)):
    shape = (x.shape[0], *size, x.shape[3])
    scale, translation = (jnp.asarray(a, jnp.float64) for a in (scale, translation))
    return jax.image.scale_and_translate(
        x, shape, (1, 2), scale, translation, "linear", antialias=False
    )


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_those_of_scale_and_translate(case):
    """Also of scales that the program computes."""
    shape, size, options = CASES[case]
    options = {"translation": (0.0, 0.0), **options}
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, *shape, 3)), rng.normal(size=(2, *size, 3))

    @jax.jit
    def outputs(x, cotangent, computed):
        ours, theirs = resize_gpu.scale_and_translate, definition
        pairs = [jax.vjp(partial(f, size=size, **options), x) for f in (ours, theirs)]
        found, expected = ((value, *transpose(cotangent)) for value, transpose in pairs)
        return found, expected, resize_gpu.scale_and_translate_by(x, **computed, size=size)

    with jax.enable_x64(True):
        computed = {name: jnp.asarray(value) for name, value in options.items()}
        found, expected, by_computed = outputs(jnp.asarray(x), jnp.asarray(cotangent), computed)
    for a, b in zip((*found, by_computed), (*expected, expected[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("length", "out"), [(21, 41), (41, 321), (41, 328), (65, 513)])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_every_form_samples_where_float64_says(length, out, platform):
    """jax.image computes coordinates in float32, which is 3e-5 of a step at row 300."""
    x = np.random.default_rng(0).normal(size=(1, length, length, 2)).astype(np.float32)
    with xla.forms_of(platform):
        enlarge = partial(resize.resize_bilinear, size=(out, out), alignment="half_pixel")
        found = jax.jit(enlarge)(x)
    with jax.enable_x64(True):
        exact = jnp.asarray(x, jnp.float64)
        expected = jax.image.resize(exact, (1, out, out, 2), "bilinear", antialias=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 0.75, 1.25])
@pytest.mark.parametrize("alignment", ["corners", "cells", "half_pixel"])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_photograph_is_rescaled_in_steps_of_one_over_the_factor(factor, alignment, platform):
    """From pixel 0, as Caffe does; half pixels of other steps begin beside it."""
    x = np.random.default_rng(0).normal(size=(1, 321, 9, 1)).astype(np.float32)
    with xla.forms_of(platform):
        found = jax.jit(partial(resize.rescale, factor=factor, alignment=alignment))(x)
    shift = 0.5 / factor - 0.5 if alignment == "half_pixel" else 0
    sizes = [int((n - 1) * factor) + 1 for n in (321, 9)]
    if alignment == "half_pixel":
        sizes = [int(n * factor) for n in (321, 9)]
    at = [[i / factor + shift for i in range(n)] for n in sizes]
    np.testing.assert_allclose(found[0], reference.bilinear(x[0], *at), rtol=0, atol=1e-6)


def test_half_precision_is_rounded_once():
    x = np.random.default_rng(0).normal(size=(1, 9, 9, 3)).astype(np.float32)
    half = jnp.asarray(x, jnp.bfloat16)
    for platform in ("cpu", "cuda"):
        with xla.forms_of(platform):
            enlarge = partial(resize.resize_bilinear, size=(21, 21), alignment="corners")
            ours = enlarge(half)
            exact = enlarge(half.astype(jnp.float32)).astype(jnp.bfloat16)
        np.testing.assert_array_equal(ours, exact)


def test_neither_value_nor_gradient_scatters_or_multiplies_matrices():
    x = jax.ShapeDtypeStruct((2, 9, 9, 3), jnp.float32)
    enlarge = partial(resize_gpu.scale_and_translate, size=(21, 21), scale=(21 / 9, 21 / 9))
    program = jax.jit(jax.value_and_grad(lambda x: jnp.square(enlarge(x)).sum())).lower(x).as_text()
    assert "stablehlo.gather" in program
    assert "stablehlo.scatter" not in program
    assert "stablehlo.dot_general" not in program


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
    np.testing.assert_allclose(found, moved(scores, size), rtol=0, atol=1e-6)


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
    np.testing.assert_allclose(found, reference.bilinear(scores, *sides), rtol=0, atol=1e-6)


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
