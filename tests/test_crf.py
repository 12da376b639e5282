"""The fully connected CRF on small drawn photographs; `test_crf_photographs.py` has real ones."""

import builtins

import crf_reference as reference
import jax
import jax.export  # not imported by jax itself
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import crf
from deeplab_jax.crf import filtering, inference, refinement
from deeplab_jax.crf.exact import exact_smooth

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
    valid = jnp.ones((1, *image.shape[:2]), bool)
    pixels = inference.flatten(jnp.asarray(image)[None], valid)
    return inference.appearance_features(pixels, params)


def lattice_of(image, params=SMALL, normalization="symmetric"):
    pixels = refinement.host_pixels(image[None], np.ones((1, *image.shape[:2]), bool))
    vertices = refinement.appearance_vertices(pixels, params, num_images=1)
    return refinement.tight_kernel(vertices, normalization)


def assert_argmax_equal(ours, theirs):
    """Equal labels wherever the best two are further apart than rounding."""
    best = np.sort(theirs, axis=-1)
    clear = best[..., -1] - best[..., -2] > 2e-5
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


@pytest.fixture(scope="module")
def lattice():
    return lattice_of(photograph())


# Lattice


def test_vertices_are_those_of_unfused_float32_arithmetic(lattice):
    features = np.asarray(features_of(photograph(), SMALL))
    expected = reference.simplex(features)
    coordinates = np.unique(expected.transpose(0, 2, 1).reshape(-1, 5), axis=0)
    assert int(lattice.num_vertices) == len(coordinates) + 6  # padding: one of each class


def test_simplex_is_unfused_to_the_bit_on_a_fine_grid_of_features():
    # On multiples of 1/8 many pixels lie on the border of two simplices.
    features = np.random.default_rng(0).integers(0, 400, (5, 20_000)).astype(np.float32) / 8
    cell, rank, _ = jax.jit(lambda x: inference_simplex(x))(features)
    k = np.arange(6)[:, None, None]
    vertices = np.asarray(cell) * 6 + k - 6 * (np.asarray(rank) > 5 - k)
    np.testing.assert_array_equal(vertices[:, :5], reference.simplex(features))


def inference_simplex(features):
    from deeplab_jax.crf.vertices import elevate, enclosing_simplex

    return enclosing_simplex(elevate(features))


def test_features_are_divided_with_correct_rounding():
    features = np.asarray(jax.jit(features_of, static_argnums=1)(photograph(), SMALL))
    x = np.tile(np.arange(W, dtype=np.float32), H) / np.float32(20.0)
    np.testing.assert_array_equal(features[0], x)


def test_neighbors_differ_by_one_step(lattice):
    features = np.asarray(features_of(photograph(), SMALL))
    coordinates = reference.simplex(features).transpose(0, 2, 1).reshape(-1, 5)
    numbers = np.asarray(lattice.vertex)[:, : H * W].reshape(-1)
    known = {tuple(x): i for x, i in zip(coordinates, numbers, strict=True)}
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
    smoothed = jax.jit(crf.smooth)(lattice, ones)[: H * W]
    np.testing.assert_allclose(smoothed, 1, atol=2e-3)


@pytest.mark.parametrize(
    "bounds",
    [(40, 512), pytest.param((4096, 10), marks=pytest.mark.slow)],
    ids=["vertices", "rows"],
)
def test_a_bound_too_small_gives_nan(bounds):
    pixels = refinement.host_pixels(photograph()[None], np.ones((1, H, W), bool))
    vertices = refinement.appearance_vertices(pixels, SMALL, num_images=1)
    lattice = refinement.connect(vertices, vertex_bound=bounds[0], row_bound=bounds[1])
    assert not lattice.fits
    assert np.isnan(
        jax.jit(crf.smooth)(lattice, np.ones((len(lattice.ratio), 1), np.float32))
    ).all()


# Against pydensecrf


@pytest.mark.parametrize("normalization", ["symmetric", "per_pixel"])
@pytest.mark.parametrize(
    "params",
    [SMALL, pytest.param(crf.RESNET101, marks=pytest.mark.slow)],
    ids=["smooth", "textured"],
)
def test_marginals_are_those_of_pydensecrf(params, normalization):
    pytest.importorskip("pydensecrf")
    image, probs = photograph(), scores()
    ours = crf.refine(image, probs, params, normalization=normalization)
    theirs = crf.refine(image, probs, params, normalization=normalization, backend="pydensecrf")
    assert (theirs.argmax(-1) != probs.argmax(-1)).mean() > 0.03
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert_argmax_equal(ours, theirs)


@pytest.mark.slow
def test_marginals_inside_a_callers_jit_are_those_of_refine():
    image, probs = photograph(), scores()
    run = jax.jit(lambda image, probs: crf.marginals(image, inference.energies(probs), SMALL))
    np.testing.assert_allclose(
        run(image[None], probs[None])[0], crf.refine(image, probs, SMALL), atol=1e-6
    )


def test_photographs_of_a_batch_do_not_see_each_other_or_their_padding():
    sizes = [(15, 17), (9, 14)]
    images = np.random.default_rng(0).integers(0, 255, (2, 15, 17, 3), np.uint8)
    probs = np.random.default_rng(1).dirichlet(np.ones(C), (2, 15, 17)).astype(np.float32)
    valid = np.zeros((2, 15, 17), bool)
    singles = []
    for i, (h, w) in enumerate(sizes):
        images[i, :h, :w], probs[i, :h, :w] = photograph(h, w, seed=i), scores(h, w, seed=i)
        valid[i, :h, :w] = True
        singles.append(crf.refine(images[i, :h, :w], probs[i, :h, :w], SMALL))
    batch = crf.refine_batch(images, probs, valid, SMALL)
    for i, (h, w) in enumerate(sizes):
        np.testing.assert_allclose(batch[i, :h, :w], singles[i], atol=1e-6)


def test_other_parameters_do_not_compile_anew():
    crf.refine(photograph(), scores(), SMALL)
    compiled = [refinement.appearance_vertices, refinement.connect, refinement.infer]
    before = [function._cache_size() for function in compiled]
    params = SMALL.replace(appearance_weight=5.0, sigma_xy=20.01)
    assert np.abs(crf.refine(photograph(), scores(), params) - scores()).max() > 0.1
    assert [function._cache_size() for function in compiled] == before


# Energies


def test_a_potts_matrix_is_its_weight(lattice):
    unary = np.pad(-np.log(scores()).reshape(-1, C), ((0, len(lattice.ratio) - H * W), (0, 0)))
    run = jax.jit(crf.mean_field, static_argnums=3)
    by_weight = run(unary, [lattice], [4.0], 5)
    by_matrix = run(unary, [lattice], [4.0 * (1 - np.eye(C, dtype=np.float32))], 5)
    np.testing.assert_allclose(by_matrix[: H * W], by_weight[: H * W], atol=2e-5)


def test_a_full_compatibility_matrix_is_that_of_the_definition(lattice):
    rng = np.random.default_rng(0)
    penalty = rng.random((C, C)).astype(np.float32)  # not symmetric
    unary = np.pad(-np.log(scores()).reshape(-1, C), ((0, len(lattice.ratio) - H * W), (0, 0)))
    before = reference.softmax(-unary)
    smoothed = np.asarray(jax.jit(crf.smooth)(lattice, before.astype(np.float32)))
    expected = reference.softmax(-unary - np.einsum("nm,lm->nl", smoothed, penalty))
    ours = jax.jit(crf.mean_field, static_argnums=3)(unary, [lattice], [penalty], 1)
    np.testing.assert_allclose(ours[: H * W], expected[: H * W], atol=1e-6)


def test_uniform_probabilities_stay_uniform():
    uniform = np.full((H, W, C), 1 / C, np.float32)
    np.testing.assert_allclose(crf.refine(photograph(), uniform, SMALL), uniform, atol=1e-6)


def test_without_weights_nothing_changes():
    params = SMALL.replace(appearance_weight=0.0, smoothness_weight=0.0)
    np.testing.assert_allclose(crf.refine(photograph(), scores(), params), scores(), atol=1e-6)


# The dense kernel


@pytest.mark.parametrize("n", [100, 1500])  # less and more than one tile
def test_exact_smoothing_is_the_dense_kernel(n):
    rng = np.random.default_rng(0)
    features = (200 + rng.normal(0, 2, (5, n))).astype(np.float32)
    values = rng.random((n, 3), np.float32)
    expected = reference.dense_kernel(features) @ values
    np.testing.assert_allclose(
        exact_smooth(jnp.asarray(features), jnp.asarray(values)), expected, rtol=1e-4
    )


@pytest.mark.parametrize("normalization", ["symmetric", "per_pixel"])
def test_the_lattice_is_as_near_to_the_dense_kernel_as_pydensecrf(normalization):
    pytest.importorskip("pydensecrf")
    results = {
        backend: crf.refine(
            photograph(), scores(), SMALL, backend=backend, normalization=normalization
        )
        for backend in ("jax", "pydensecrf", "exact")
    }
    exact = results.pop("exact")
    ours, theirs = (np.abs(result - exact).mean() for result in results.values())
    assert ours < theirs * 1.001
    assert ours < 0.02
    assert (results["jax"].argmax(-1) == exact.argmax(-1)).mean() > 0.95


# Pruning


def test_pruning_changes_the_kept_labels_little():
    probs = scores(c=12)
    probs[..., 3:] *= 0.02  # nine labels that are rare everywhere
    probs /= probs.sum(-1, keepdims=True)
    full = crf.refine(photograph(), probs, SMALL)
    pruned = crf.refine(photograph(), probs, SMALL, prune_below=0.03)
    np.testing.assert_allclose(pruned.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(pruned[..., :3], full[..., :3], atol=0.1)
    assert np.abs(pruned[..., :3] - full[..., :3]).mean() < 1e-3
    assert not np.array_equal(pruned, full)


def test_pruning_nothing_is_exact():
    full = crf.refine(photograph(), scores(), SMALL)
    pruned = crf.refine(photograph(), scores(), SMALL, prune_below=1e-3)
    np.testing.assert_array_equal(pruned, full)


# Gradients


@pytest.mark.parametrize("normalization", ["symmetric", "per_pixel"])
def test_the_transpose_of_the_filter_is_its_transpose(normalization):
    lattice = lattice_of(photograph(), normalization=normalization)
    a, b = np.random.default_rng(0).random((2, len(lattice.ratio), 2), np.float32)
    a[H * W :] = b[H * W :] = 0
    smoothed, pull_back = jax.vjp(lambda x: crf.smooth(lattice, x), jnp.asarray(a))
    np.testing.assert_allclose((smoothed * b).sum(), (pull_back(b)[0] * a).sum(), rtol=1e-5)


def assert_gradients_are_finite_differences(loss, point):
    gradients = jax.jit(jax.grad(loss, argnums=tuple(range(len(point)))))(*point)
    loss = jax.jit(loss)
    for i, gradient in enumerate(gradients):
        ahead, behind = [*point], [*point]
        ahead[i], behind[i] = point[i] + 1e-5, point[i] - 1e-5
        difference = (loss(*ahead) - loss(*behind)) / 2e-5
        np.testing.assert_allclose(gradient, difference, rtol=1e-6)


def test_gradients_of_mean_field_are_finite_differences_in_float64(lattice):
    rng = np.random.default_rng(3)
    unary = np.zeros((len(lattice.ratio), C))
    unary[: H * W] = -np.log(scores().reshape(-1, C))
    direction, target = rng.normal(size=(2, *unary.shape))
    target[H * W :] = 0
    with jax.enable_x64(True):

        def loss(step, weight, penalty):
            compat = [weight, penalty * jnp.asarray(rng_matrix)]
            q = crf.mean_field(unary + step * direction, [lattice, lattice], compat, 5)
            return (q * target).sum()

        rng_matrix = rng.random((C, C))
        point = [jnp.float64(x) for x in (0.0, 4.0, 3.0)]
        assert_gradients_are_finite_differences(loss, point)


@pytest.mark.slow
def test_gradients_of_marginals_are_finite_differences_in_float64():
    h, w = 12, 14
    image, probs = photograph(h, w), scores(h, w)
    with jax.enable_x64(True):
        unary = -jnp.log(jnp.asarray(probs, jnp.float64))[None]
        direction, target = np.random.default_rng(3).normal(size=(2, *unary.shape))

        def loss(step, appearance, smoothness):
            params = SMALL.replace(appearance_weight=appearance, smoothness_weight=smoothness)
            energies = unary + step * direction
            q = crf.marginals(image[None], energies, params, num_iterations=5)
            return (q * target).sum()

        point = [jnp.float64(x) for x in (0.0, 4.0, 3.0)]
        assert_gradients_are_finite_differences(loss, point)


# What people hand in


@pytest.mark.parametrize(("h", "w", "c"), [(1, 1, 3), (1, 7, 2), (5, 1, 1), (7, 9, 256)])
def test_any_size_and_number_of_labels(h, w, c):
    ours = crf.refine(photograph(h, w), scores(h, w, c), SMALL)
    assert ours.shape == (h, w, c)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        crf.CRFParams(sigma_xy=1e6, sigma_rgb=1e6, sigma_smoothness=1e6),
        crf.CRFParams(sigma_xy=0.5, sigma_rgb=0.3, sigma_smoothness=0.05),
        crf.CRFParams(appearance_weight=1000.0, smoothness_weight=500.0),
    ],
    ids=["huge", "tiny", "heavy"],
)
def test_extreme_parameters(params):
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    ours = crf.refine(noise, scores(7, 9), params)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)


def test_bandwidths_that_overflow_the_key_are_refused():
    with pytest.raises(ValueError, match="63 bits"):
        crf.refine(photograph(), scores(), crf.CRFParams(sigma_xy=1e-4, sigma_rgb=1e-4))


def test_certain_probabilities_stay_finite():
    certain = np.eye(C, dtype=np.float32)[scores().argmax(-1)]
    ours = crf.refine(photograph(), certain, SMALL)
    np.testing.assert_array_equal(ours.argmax(-1), certain.argmax(-1))
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)


def test_float64_strided_and_jax_arrays_give_the_same():
    image, probs = photograph(), scores()
    expected = crf.refine(image, probs, SMALL)
    wide = np.zeros((H, 2 * W, C))
    wide[:, ::2] = probs
    np.testing.assert_array_equal(crf.refine(image, wide[:, ::2], SMALL), expected)
    on_device = crf.refine(jnp.asarray(image), jnp.asarray(probs), SMALL)
    assert isinstance(on_device, jax.Array)
    assert isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(on_device, expected)


def test_wrong_shapes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(21, 23, 3\) and \(21, 22, 5\)"):
        crf.refine(photograph(), scores(w=22), SMALL)
    with pytest.raises(ValueError, match=r"\(21, 23\) and \(21, 23, 5\)"):
        crf.refine(photograph()[..., 0], scores(), SMALL)
    with pytest.raises(ValueError, match=r"\(1, 21, 23, 3\), got \(21, 23\)"):
        crf.refine_batch(photograph()[None], scores()[None], np.ones((H, W), bool), SMALL)


def test_what_is_no_photograph_or_probability_is_refused():
    with pytest.raises(ValueError, match="uint8.*float64"):
        crf.refine(photograph() / 255, scores(), SMALL)
    broken = scores()
    broken[3, 4, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        crf.refine(photograph(), broken, SMALL)


def test_a_missing_pydensecrf_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pydensecrf"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        crf.refine(photograph(), scores(), SMALL, backend="pydensecrf")


def test_sizes_share_buckets():
    assert refinement.bucket(375 * 500, 4) == refinement.bucket(333 * 500, 4) == 196_608
    for size in (1, 63, 64, 65, 1000, 187_500):
        assert size <= refinement.bucket(size, 8) <= max(64, size * 1.13)


# Other devices


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_marginals_lower_for_accelerators(platform):
    shapes = (
        jax.ShapeDtypeStruct((2, 33, 40, 3), jnp.uint8),
        jax.ShapeDtypeStruct((2, 33, 40, 21), jnp.float32),
    )
    run = jax.jit(lambda image, unary: crf.marginals(image, unary, crf.RESNET101))
    exported = jax.export.export(run, platforms=[platform])(*shapes)
    assert exported.out_avals[0].shape == (2, 33, 40, 21)
