"""`crf.kernel`, `crf.filter` and `crf.mean_field` on points, images and volumes."""

import crf_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crf_drawings import SMALL, lattice_matrix, photograph, scores

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
    """Beside a kernel of its own features and compatibility."""
    rng = np.random.default_rng(2)
    features, energies = points(3), energies_of(60)
    penalty = {"potts": 1.5, "diagonal": -rng.random(4), "full": rng.random((4, 4))}[kind]
    matrix = -1.5 * np.eye(4) if kind == "potts" else penalty
    matrix = np.diag(penalty) if kind == "diagonal" else matrix
    terms = [
        (lattice_matrix(features, normalization), matrix),
        (lattice_matrix(features[:, :1]), -2.0 * np.eye(4)),
    ]
    made = [crf.kernel(features, normalization=normalization), crf.kernel(features[:, :1])]
    ours = crf.mean_field(energies, made, [penalty, 2.0], 4)
    np.testing.assert_allclose(ours, dense_mean_field(energies, terms, 4), atol=2e-5)


def test_two_words_of_keys_give_the_lattice_of_one():
    features = points(5, n=300, spread=4.0).T
    everywhere, nobody = np.ones(300, bool), np.zeros(300, np.int32)
    values = np.random.default_rng(0).random((300, 2), np.float32)
    results = []
    for words in (1, 2):
        vertices = kernels.compiled_vertices(features, everywhere, nobody, words=words)
        assert bool(vertices.packs)
        lattice = kernels.compiled_connect(vertices, **kernels.tight_bounds(vertices))
        lattice = kernels.compiled_normalize(lattice, normalization="symmetric")
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
    assert not kernels.compiled_vertices(features.T, *points, words=1).packs
    matrix = lattice_matrix(features, "after")
    expected = np.tile(np.eye(20) / 2, (2, 2))
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_groups_and_invalid_points_have_no_influence():
    features, values = points(3, n=50), energies_of(50)
    parts = slice(0, 25), slice(25, 40)
    apart = [crf.filter(crf.kernel(features[part]), values[part]) for part in parts]
    valid = np.arange(50) < 40
    made = crf.kernel(features, group=np.repeat([0, 1], 25), valid=valid)
    together = crf.filter(made, values)[:40]
    np.testing.assert_allclose(together, np.concatenate(apart), atol=1e-6)


def test_a_kernel_of_points_in_a_grid_keeps_their_axes():
    features, values = points(2, n=24), energies_of(24)
    filtered = crf.filter(crf.kernel(features.reshape(4, 6, 2)), values.reshape(4, 6, 4))
    flat = crf.filter(crf.kernel(features), values)
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


def test_features_are_coordinates_over_their_deviations():
    features = crf.grid_features((2, 3, 4), sigma=(2.0, 4.0, 8.0))
    z, y, x = np.mgrid[:2, :3, :4]
    expected = np.stack([x / 8.0, y / 4.0, z / 2.0], axis=-1)
    np.testing.assert_array_equal(features, expected.astype(np.float32))
    image, sigmas = np.random.default_rng(0).random((3, 4, 6)), np.arange(1.0, 7.0)
    features = crf.image_features(image, 2.0, sigmas)
    np.testing.assert_allclose(features[..., 2:], image / sigmas, rtol=1e-6)
    np.testing.assert_array_equal(features[..., :2], crf.grid_features((3, 4), 2.0))


def test_features_of_a_photograph_are_those_of_refine():
    image, probs = photograph(), scores()
    made = [
        crf.kernel(crf.image_features(image, 20.0, 8.0)),
        crf.kernel(crf.grid_features((21, 23), 1.0)),
    ]
    ours = crf.mean_field(crf.energies(probs), made, [4.0, 3.0])
    np.testing.assert_allclose(ours, crf.refine(image, probs, SMALL), atol=1e-6)


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

        reference.assert_derivatives(loss, [features, energies, jnp.asarray(penalty)], rtol=1e-5)


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
