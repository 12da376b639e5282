"""The lattice and its filter against coordinates, sums and dense products written out."""

from functools import partial

import crf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_drawings import SMALL, H, W, features_of, lattice_of, photograph

from deeplab_jax import crf
from deeplab_jax.crf import filtering, kernels, lattice_numpy
from deeplab_jax.crf.lattice import elevate, enclosing_simplex


@pytest.fixture(scope="module")
def lattice():
    return lattice_of(photograph())


def test_simplex_is_unfused_to_the_bit_on_a_fine_grid_of_features():
    # On multiples of 1/8 many pixels lie on the border of two simplices.
    features = np.random.default_rng(0).integers(0, 400, (5, 20_000)).astype(np.float32) / 8
    cell, rank, _ = jax.jit(lambda x: enclosing_simplex(elevate(x)))(features)
    k = np.arange(6)[:, None, None]
    vertices = np.asarray(cell) * 6 + k - 6 * (np.asarray(rank) > 5 - k)
    np.testing.assert_array_equal(vertices[:, :5], reference.simplex(features))


def test_features_are_divided_with_correct_rounding():
    features = np.asarray(jax.jit(features_of, static_argnums=1)(photograph(), SMALL))
    x = np.tile(np.arange(W, dtype=np.float32), H) / np.float32(20.0)
    np.testing.assert_array_equal(features[0], x)


@pytest.mark.parametrize(
    ("size", "sigma"),
    [
        (2, 3.0),
        pytest.param(1, 0.01, marks=pytest.mark.slow),  # rows of rows
        pytest.param(5, 0.125, marks=pytest.mark.slow),
    ],
)
def test_numpy_makes_the_lattice_that_is_compiled_but_for_its_order(size, sigma, users_compilation):
    # On multiples of 1/8 many points lie on the border of two simplices.
    random = np.random.default_rng(0)
    features = random.integers(0, 40, (size, 900)).astype(np.float32) * sigma
    points = features, np.arange(900) < 880, np.arange(900, dtype=np.int32) % 2
    ours, compiled = lattice_numpy.sort_vertices(*points), kernels.compiled_vertices(*points)
    bounds = kernels.tight_bounds(ours)
    assert bounds == kernels.tight_bounds(compiled)
    lattice, theirs = (
        lattice_numpy.connect(ours, **bounds),
        kernels.compiled_connect(compiled, **bounds),
    )
    number = np.zeros(1 + int(lattice.num_vertices), int)
    number[np.asarray(theirs.vertex)] = lattice.vertex
    assert sorted(number) == list(range(len(number)))
    steps = [(*tables.neighbors, *tables.double_steps) for tables in (lattice, theirs)]
    for one, other in zip(*steps, strict=True):
        np.testing.assert_array_equal(one[:, number], number[other[:, : len(number)]])
    for name in ("splat_weight", "slice_weight", "num_vertices", "fits"):
        np.testing.assert_array_equal(getattr(lattice, name), getattr(theirs, name))
    values = random.random((900, 8), np.float32)
    splat = jax.jit(filtering.splat)
    of_numpy, of_compiled = splat(lattice, values), splat(theirs, values)
    np.testing.assert_array_equal(of_numpy[number], of_compiled[: len(number)])
    for normalization in ("none", "symmetric", "after", "before"):
        expected = kernels.compiled_normalize(theirs, normalization=normalization)
        found = lattice_numpy.normalize(jax.tree.map(np.copy, lattice), normalization)
        close = partial(np.testing.assert_allclose, rtol=2e-6)
        for name in ("splat_weight", "slice_weight", "ratio"):
            close(getattr(found, name), getattr(expected, name))
        close(splat(found, values)[number], splat(expected, values)[: len(number)])


def test_neighbors_differ_by_one_step(lattice):
    features = np.asarray(features_of(photograph(), SMALL))
    coordinates = reference.simplex(features).transpose(0, 2, 1).reshape(-1, 5)
    numbers = np.asarray(lattice.vertex)[:, : H * W].reshape(-1)
    known = {tuple(x): i for x, i in zip(coordinates, numbers, strict=True)}
    assert int(lattice.num_vertices) == len(known) + 6  # padding: one of each class
    assert len(set(known.values())) == len(known)
    for axis, neighbors in enumerate(lattice.neighbors):
        step = -np.ones(5, int) + 6 * (np.arange(5) == axis)
        for sign, found in zip((1, -1), np.asarray(neighbors), strict=True):
            expected = [known.get(tuple(x), 0) for x in np.array(list(known)) + sign * step]
            np.testing.assert_array_equal(found[list(known.values())], expected)


def test_splat_sums_what_slice_reads(lattice):
    values = np.random.default_rng(0).random((len(lattice.ratio), 8), np.float32)
    splat = jax.jit(filtering.splat)(lattice, values)
    # Splat and slice use the same weights but for alpha = 1 / (1 + 2^-5).
    expected = np.zeros(splat.shape)
    weight = np.asarray(lattice.slice_weight) * (1 + 2.0**-5)
    for vertex, w in zip(np.asarray(lattice.vertex), weight, strict=True):
        np.add.at(expected, vertex, w[:, None] * values)
    np.testing.assert_allclose(splat[1:], expected[1:], atol=1e-4)


def test_a_uniform_photograph_needs_rows_of_rows():
    lattice = lattice_of(np.full((H, W, 3), 7, np.uint8), crf.CRFParams(sigma_xy=1e4))
    ones = np.ones((len(lattice.ratio), 1), np.float32)
    assert int(lattice.num_vertices) < 30
    # Every kernel value is 1, so symmetric normalization gives the mean over all pixels.
    smoothed = jax.jit(filtering.smooth)(lattice, ones)[: H * W]
    np.testing.assert_allclose(smoothed, 1, atol=2e-3)


@pytest.mark.parametrize(
    ("params", "bounds"),
    [
        (SMALL, (40, 512, 64, None)),
        pytest.param(SMALL, (4096, 10, 64, None), marks=pytest.mark.slow),
        pytest.param(crf.CRFParams(4.0, 1e4, 1e4), (4096, 512, 1, None), marks=pytest.mark.slow),
        pytest.param(crf.CRFParams(4.0, 1e4, 1e4), (4096, 512, 64, 1), marks=pytest.mark.slow),
    ],
    ids=["vertices", "rows", "upper", "levels"],
)
def test_a_bound_too_small_gives_nan(params, bounds):
    image = photograph()
    points = np.ones(image.shape[:2], bool).reshape(-1), np.zeros(image[..., 0].size, np.int32)
    vertices = kernels.compiled_vertices(features_of(image, params), *points)
    names = ("vertex_bound", "row_bound", "upper_bound", "num_levels")
    lattice = kernels.compiled_connect(vertices, **dict(zip(names, bounds, strict=True)))
    assert not lattice.fits
    assert np.isnan(
        jax.jit(filtering.smooth)(lattice, np.ones((len(lattice.ratio), 1), np.float32))
    ).all()


@pytest.mark.parametrize(
    "normalization", [pytest.param("symmetric", marks=pytest.mark.slow), "per_pixel"]
)
def test_the_transpose_of_the_filter_is_its_transpose(normalization):
    lattice = lattice_of(photograph(), normalization=normalization)
    a, b = np.random.default_rng(0).random((2, len(lattice.ratio), 2), np.float32)
    a[H * W :] = b[H * W :] = 0
    a, b = jnp.asarray(a), jnp.asarray(b)
    smoothed, pull_back = jax.vjp(lambda x: filtering.smooth(lattice, x), a)
    np.testing.assert_allclose((smoothed * b).sum(), (pull_back(b)[0] * a).sum(), rtol=1e-5)

    def plain(x):
        return filtering.slice_(lattice, filtering.blur(lattice, filtering.splat(lattice, x)))

    by_autodiff = jax.vjp(plain, a)[1](b)[0]
    np.testing.assert_allclose(pull_back(b)[0], by_autodiff, rtol=1e-4, atol=1e-6)
