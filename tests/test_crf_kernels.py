"""`crf.kernel`, `crf.filter` and `crf.mean_field` on points, images and volumes."""

from dataclasses import replace
from functools import partial

import crf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import crf
from deeplab_jax.crf import kernels, lattice_numpy
from deeplab_jax.types import UserError

NORMALIZATIONS = ["none", "before", "after", "symmetric"]


def points(d, n=60, spread=2.0, seed=0):
    return (spread * np.random.default_rng(seed).random((n, d))).astype(np.float32)


def energies_of(n, c=4, seed=1):
    return (3 * np.random.default_rng(seed).random((n, c))).astype(np.float32)


def dense_mean_field(energies, terms, num_iterations):
    """The definition in float64; each term is a normalized kernel matrix and a penalty matrix."""
    q = reference.softmax(-energies.astype(float))
    for _ in range(num_iterations):
        q = reference.softmax(-energies - sum(k @ q @ m.T for k, m in terms))
    return q


def normalized(k, normalization):
    total = k.sum(1)
    return {
        "none": k,
        "before": k / total,
        "after": k / total[:, None],
        "symmetric": k / np.sqrt(total * total[:, None]),
    }[normalization]


def lattice_matrix(features, normalization="symmetric"):
    """The kernel as a matrix: what the filter makes of the identity."""
    made = crf.kernel(features, normalization=normalization)
    return np.asarray(crf.filter(made, np.eye(len(features), dtype=np.float32)), float)


@pytest.mark.parametrize(
    "d", [1, 3, 8, *(pytest.param(d, marks=pytest.mark.slow) for d in (2, 4, 5, 6, 7))]
)
def test_the_filter_is_near_the_dense_kernel_in_any_dimension(d):
    features = points(d)
    exact = normalized(reference.dense_kernel(features.T), "symmetric")
    ours = lattice_matrix(features)
    assert np.abs(ours - exact).mean() < (0.3 if d < 5 else 0.7) * exact.mean()
    assert np.corrcoef(ours.ravel(), exact.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_each_normalization_divides_by_the_row_sums_it_names(normalization):
    features = points(3)
    plain = lattice_matrix(features, "none")
    ours = lattice_matrix(features, normalization)
    np.testing.assert_allclose(ours, normalized(plain, normalization), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["potts", "diagonal", "full"])
def test_mean_field_is_its_definition_for_each_compatibility(kind, normalization):
    rng = np.random.default_rng(2)
    features, energies = points(3), energies_of(60)
    penalty = {"potts": 1.5, "diagonal": -rng.random(4), "full": rng.random((4, 4))}[kind]
    matrix = -1.5 * np.eye(4) if kind == "potts" else penalty
    matrix = np.diag(penalty) if kind == "diagonal" else matrix
    k = lattice_matrix(features, normalization)
    made = crf.kernel(features, normalization=normalization)
    ours = crf.mean_field(energies, [made], [penalty], 4)
    np.testing.assert_allclose(ours, dense_mean_field(energies, [(k, matrix)], 4), atol=2e-5)


def test_kernels_of_different_compatibilities_add_up():
    rng = np.random.default_rng(2)
    features, energies, penalty = points(3), energies_of(60), rng.random((4, 4))
    ours = crf.mean_field(
        energies, [crf.kernel(features), crf.kernel(features[:, :1])], [2.0, penalty], 3
    )
    terms = [
        (lattice_matrix(features), -2.0 * np.eye(4)),
        (lattice_matrix(features[:, :1]), penalty),
    ]
    np.testing.assert_allclose(ours, dense_mean_field(energies, terms, 3), atol=2e-5)


def test_two_words_of_keys_give_the_lattice_of_one():
    features = points(5, n=300, spread=4.0).T
    everywhere, nobody = np.ones(300, bool), np.zeros(300, np.int32)
    values = np.random.default_rng(0).random((300, 2), np.float32)
    results = []
    for words in (1, 2):
        vertices = kernels.compiled_vertices(features, everywhere, nobody, words=words)
        assert bool(vertices.packs)
        lattice = kernels.tight_kernel(vertices, "symmetric")
        results.append(np.asarray(kernels.smooth(lattice, values)))
        results.append(np.sort(np.asarray(vertices.count)))
    np.testing.assert_allclose(results[0], results[2], atol=1e-6)
    np.testing.assert_array_equal(results[1], results[3])


def test_wide_features_need_two_words_and_are_filtered_in_pairs():
    # Twenty pairs of equal points, each pair far from all others, in 8 dimensions.
    far = 2000 * np.random.default_rng(0).random((20, 8), np.float32)
    features = np.concatenate([far, far])
    points = (np.ones(40, bool), np.zeros(40, np.int32))
    assert lattice_numpy.sort_vertices(features.T, *points) is None
    assert not kernels.compiled_vertices(features.T, *points).packs
    matrix = lattice_matrix(features, "after")
    expected = np.tile(np.eye(20) / 2, (2, 2))
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_groups_and_invalid_points_have_no_influence():
    features, values = points(3, n=50), energies_of(50)
    group = np.repeat([0, 1], 25)
    apart = [
        crf.filter(crf.kernel(features[part]), values[part])
        for part in (slice(0, 25), slice(25, 40))
    ]
    valid = np.arange(50) < 40
    together = crf.filter(crf.kernel(features, group=group, valid=valid), values)
    np.testing.assert_allclose(together[:40], np.concatenate(apart), atol=1e-6)


def test_a_kernel_of_points_in_a_grid_keeps_their_axes():
    features = points(2, n=24).reshape(4, 6, 2)
    values = energies_of(24).reshape(4, 6, 4)
    filtered = crf.filter(crf.kernel(features), values)
    flat = crf.filter(crf.kernel(features.reshape(24, 2)), values.reshape(24, 4))
    np.testing.assert_array_equal(filtered.reshape(24, 4), flat)


@pytest.mark.slow
def test_inside_jit_and_vmap_a_kernel_is_that_of_the_host():
    features = np.stack([points(3, n=40, seed=s) for s in (0, 1)])
    energies = np.stack([energies_of(40, seed=s) for s in (0, 1)])

    def infer(features, energies):
        return crf.mean_field(energies, [crf.kernel(features)], [2.0], 3)

    expected = [infer(f, e) for f, e in zip(features, energies, strict=True)]
    np.testing.assert_allclose(jax.jit(jax.vmap(infer))(features, energies), expected, atol=1e-6)


def test_kl_divergence_is_its_definition_and_falls():
    features, energies = points(3), energies_of(60)
    made = crf.kernel(features)
    k = lattice_matrix(features)
    values = []
    for n in range(5):
        q = np.asarray(crf.mean_field(energies, [made], [1.0], n), float)
        expected = (q * np.log(q)).sum() + (q * energies).sum() - (q * (k @ q)).sum()
        values.append(float(crf.kl_divergence(q.astype(np.float32), energies, [made], [1.0])))
        np.testing.assert_allclose(values[-1], expected, rtol=1e-5)
    assert values == sorted(values, reverse=True)


def test_mean_field_goes_on_from_where_it_stopped():
    energies, made = energies_of(60), crf.kernel(points(3))
    halfway = crf.mean_field(energies, [made], [2.0], 2)
    np.testing.assert_allclose(
        crf.mean_field(energies, [made], [2.0], 3, start=halfway),
        crf.mean_field(energies, [made], [2.0], 5),
        atol=1e-6,
    )


# Features


def test_grid_features_are_positions_over_each_axis_deviation():
    features = crf.grid_features((2, 3, 4), sigma=(2.0, 4.0, 8.0))
    z, y, x = np.mgrid[:2, :3, :4]
    expected = np.stack([x / 8.0, y / 4.0, z / 2.0], axis=-1)
    np.testing.assert_array_equal(features, expected.astype(np.float32))


def test_image_features_scale_each_channel():
    image = np.random.default_rng(0).random((3, 4, 6))
    sigmas = np.arange(1.0, 7.0)
    features = crf.image_features(image, 2.0, sigmas)
    np.testing.assert_allclose(features[..., 2:], image / sigmas, rtol=1e-6)
    np.testing.assert_array_equal(features[..., :2], crf.grid_features((3, 4), 2.0))


def test_features_of_a_photograph_are_those_of_refine():
    from crf_drawings import SMALL, photograph, scores

    image, probs = photograph(), scores()
    made = [
        crf.kernel(crf.image_features(image, 20.0, 8.0)),
        crf.kernel(crf.grid_features((21, 23), 1.0)),
    ]
    ours = crf.mean_field(crf.energies(probs), made, [4.0, 3.0])
    np.testing.assert_allclose(ours, crf.refine(image, probs, SMALL), atol=1e-6)


def dense_agreement(features, weights, probs, num_iterations=5):
    """Mean distance and equal labels of our marginals and those of the dense definition."""
    flat = [f.reshape(-1, f.shape[-1]) for f in features]
    energies = crf.energies(probs).reshape(-1, probs.shape[-1])
    ours = crf.mean_field(energies, [crf.kernel(f) for f in flat], weights, num_iterations)
    terms = [
        (normalized(reference.dense_kernel(f.T), "symmetric"), -w * np.eye(probs.shape[-1]))
        for f, w in zip(flat, weights, strict=True)
    ]
    exact = dense_mean_field(energies, terms, num_iterations)
    changed = (exact.argmax(-1) != energies.argmin(-1)).mean()
    difference = np.abs(ours - exact)
    return difference.mean(), (ours.argmax(-1) == exact.argmax(-1)).mean(), changed


def blocks(shape, c, seed=0):
    """Two halves of the grid with unsure, partly wrong probabilities."""
    rng = np.random.default_rng(seed)
    labels = (np.indices(shape)[-1] >= shape[-1] // 2).astype(int)
    wrong = rng.random(shape) < 0.25
    labels = np.where(wrong, rng.integers(c, size=shape), labels)
    return (0.5 * np.eye(c)[labels] + 0.5 / c).astype(np.float32), rng


def test_float_images_of_six_channels_are_near_the_dense_definition():
    channels = 6
    probs, rng = blocks((18, 20), 3)
    image = rng.normal(0, 0.05, (18, 20, channels)) + (np.arange(20) >= 10)[:, None]
    features = [crf.image_features(image, 6.0, 0.5), crf.grid_features((18, 20), 1.5)]
    mean, agreement, changed = dense_agreement(features, [4.0, 2.0], probs)
    print(f"{channels} channels: mean {mean:.1e}, labels {agreement:.2%}, changed {changed:.0%}")
    assert changed > 0.1
    assert mean < 2e-2
    assert agreement > 0.985


def dense_messages(features, marginals, sample):
    """The dense kernel, divided by its row sums, times the marginals; of some points alone."""
    features = features.astype(float)
    result = []
    for part in np.array_split(sample, len(sample) // 10):
        distance = ((features[part, None] - features) ** 2).sum(-1)
        kernel = np.exp(-0.5 * distance)
        result.append(kernel @ marginals / kernel.sum(1, keepdims=True))
    return np.concatenate(result)


def volume(rng):
    """A grey volume of two materials, with noise."""
    probs, _ = blocks((64, 64, 32), 3)
    image = rng.normal(0, 0.05, (64, 64, 32, 1)) + (np.arange(32) >= 16)[:, None]
    return crf.image_features(image, 4.0, 0.5), probs


def cloud(rng):
    """50,000 points in the unit cube, of two kinds by their height."""
    points = rng.random((50_000, 3))
    labels = (points[:, 2] > 0.5).astype(int)
    labels = np.where(rng.random(50_000) < 0.25, rng.integers(3, size=50_000), labels)
    return (points / 0.05).astype(np.float32), (0.5 * np.eye(3)[labels] + 0.5 / 3).astype("f4")


def picture(channels, rng):
    """A float image of two materials, 120 x 160."""
    probs, _ = blocks((120, 160), 3)
    image = rng.normal(0, 0.05, (120, 160, channels)) + (np.arange(160) >= 80)[:, None]
    return crf.image_features(image, 8.0, 0.5), probs


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [volume, cloud, partial(picture, 1), partial(picture, 6)],
    ids=["volume of 64x64x32", "50,000 points", "grey image", "image of 6 channels"],
)
def test_an_update_of_many_points_is_near_the_dense_definition(draw):
    rng = np.random.default_rng(3)
    features, probs = draw(rng)
    made = crf.kernel(features, normalization="after")
    ours = np.asarray(crf.mean_field(crf.energies(probs), [made], [8.0], 1)).reshape(-1, 3)
    flat, q = features.reshape(-1, features.shape[-1]), probs.reshape(-1, 3).astype(float)
    sample = rng.choice(len(q), 300, replace=False)
    exact = reference.softmax(np.log(q[sample]) + 8 * dense_messages(flat, q, sample))
    changed = (exact.argmax(-1) != q[sample].argmax(-1)).mean()
    mean, agreement = (
        np.abs(ours[sample] - exact).mean(),
        (ours[sample].argmax(-1) == exact.argmax(-1)).mean(),
    )
    print(f"mean {mean:.1e}, labels {agreement:.1%}, changed {changed:.0%}")
    assert changed > 0.1
    assert mean < 2e-3
    assert agreement > 0.99


# Gradients


def assert_derivatives(loss, point, rtol):
    """Each partial derivative along a random direction against central differences."""
    gradients = jax.jit(jax.grad(loss, argnums=tuple(range(len(point)))))(*point)
    run = jax.jit(loss)
    rng = np.random.default_rng(9)
    for i, gradient in enumerate(gradients):
        direction = jnp.asarray(rng.normal(size=np.shape(point[i])))
        step = 1e-6 * direction
        ahead, behind = list(point), list(point)
        ahead[i], behind[i] = point[i] + step, point[i] - step
        expected = (run(*ahead) - run(*behind)) / 2e-6
        assert abs(expected) > 1e-4
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=rtol)


@pytest.mark.parametrize(
    ("kind", "normalization"),
    [
        ("potts", "symmetric"),
        pytest.param("diagonal", "after", marks=pytest.mark.slow),
        pytest.param("full", "before", marks=pytest.mark.slow),
        pytest.param("full", "none", marks=pytest.mark.slow),
    ],
)
def test_gradients_to_everything_are_finite_differences_in_float64(kind, normalization):
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        features = jnp.asarray(rng.random((14, 3)) * 1.5)
        energies = jnp.asarray(rng.random((14, 3)) * 2)
        target = jnp.asarray(rng.normal(size=(14, 3)))
        penalty = {"potts": 1.3, "diagonal": -rng.random(3), "full": rng.random((3, 3))}[kind]

        def loss(features, energies, penalty):
            made = crf.kernel(features, normalization=normalization)
            q = crf.mean_field(energies, [made, made], [penalty, 0.7], 3)
            return (q * target).sum()

        assert_derivatives(loss, [features, energies, jnp.asarray(penalty)], rtol=1e-5)


@pytest.mark.slow
def test_gradients_reach_the_deviations_of_marginals():
    from crf_drawings import SMALL, photograph, scores

    image, probs = photograph(9, 10), scores(9, 10)
    unary, target = crf.energies(probs), np.random.default_rng(0).random((9, 10, 5), np.float32)

    def loss(sigma):
        q = crf.marginals(image, unary, replace(SMALL, sigma_rgb=sigma), num_iterations=3)
        return (q * target).sum()

    gradient = jax.jit(jax.grad(loss))(8.0)
    assert np.isfinite(gradient) and gradient != 0


# What people hand in


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: crf.kernel(points(9)), "1 to 8 dimensions"),
        (lambda: crf.kernel(np.zeros((4, 2), int)), "floats"),
        (lambda: crf.kernel(np.full((4, 2), np.nan)), "NaN"),
        (lambda: crf.kernel([[0.0, 1.0]]), "np.asarray"),
        (lambda: crf.kernel(points(2), normalization="sym"), "'symmetric'"),
        (lambda: crf.kernel(points(2), valid=np.ones(3, bool)), r"\(60,\)"),
        (lambda: crf.kernel(1e9 * points(2)), "spread too far"),
        (lambda: crf.filter(crf.kernel(points(2)), energies_of(59)), r"\[60, c\]"),
        (lambda: crf.filter(points(2), energies_of(60)), "crf.kernel made"),
        (lambda: crf.mean_field(energies_of(60), [crf.kernel(points(2))], []), "1 kernels and 0"),
        (lambda: crf.mean_field(energies_of(60), [crf.kernel(points(2))], [np.ones(3)]), "4 x 4"),
        (lambda: crf.mean_field(energies_of(60), [crf.kernel(points(2))], [1.0], -1), "at least 0"),
        (lambda: crf.grid_features((0, 3), 1.0), "length 0"),
        (lambda: crf.grid_features((2, 3), 0.0), "above 0"),
        (lambda: crf.grid_features((2, 3), (1.0, 2.0, 3.0)), "2 numbers"),
        (lambda: crf.image_features(np.zeros((4, 5, 6)), 1.0, (1.0, 2.0)), "6 numbers"),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


# Other devices


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_kernels_of_points_lower_for_accelerators(platform):
    def run(features, energies):
        return crf.mean_field(energies, [crf.kernel(features)], [np.ones((4, 4))], 2)

    shapes = (
        jax.ShapeDtypeStruct((30, 7), jnp.float32),
        jax.ShapeDtypeStruct((30, 4), jnp.float32),
    )
    lowered = jax.jit(run).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert "HIGHEST" in lowered
    assert "precision = [DEFAULT, DEFAULT]" not in lowered
