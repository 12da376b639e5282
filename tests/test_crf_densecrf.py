"""Scripts that use pydensecrf as its documentation shows, run with it and with our names."""

import crf_reference as reference
import numpy as np
import pytest
from crf_drawings import photograph, scores

from deeplab_jax.crf import densecrf
from deeplab_jax.types import UserError

THEIRS = """
import pydensecrf.densecrf as dcrf
from pydensecrf.utils import compute_unary, create_pairwise_bilateral, create_pairwise_gaussian
from pydensecrf.utils import softmax_to_unary, unary_from_labels, unary_from_softmax
"""
OURS = """
from deeplab_jax.crf import densecrf as dcrf
from deeplab_jax.crf.densecrf import (
    compute_unary, create_pairwise_bilateral, create_pairwise_gaussian,
    softmax_to_unary, unary_from_labels, unary_from_softmax,
)
"""

PHOTOGRAPH = """
d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], probs.shape[-1])
U = unary_from_softmax(probs.transpose(2, 0, 1))
d.setUnaryEnergy(np.ascontiguousarray(U))
d.addPairwiseGaussian(sxy=3, compat=3)
d.addPairwiseBilateral(sxy=20, srgb=8, rgbim=image, compat=4)
Q = np.array(d.inference(5))
labels = np.argmax(Q, axis=0).reshape(image.shape[:2])
"""

ANNOTATION = """
d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], 4)
d.setUnaryEnergy(unary_from_labels(annotation, 4, gt_prob=0.7, zero_unsure=True))
d.addPairwiseGaussian(sxy=(3, 2), compat=3, kernel=dcrf.DIAG_KERNEL,
                      normalization=dcrf.NORMALIZE_SYMMETRIC)
d.addPairwiseBilateral(sxy=(30, 20), srgb=(8, 10, 13), rgbim=image, compat=10,
                       kernel=dcrf.FULL_KERNEL, normalization=dcrf.NORMALIZE_AFTER)
Q, tmp1, tmp2 = d.startInference()
divergences = [d.klDivergence(Q)]
for i in range(4):
    d.stepInference(Q, tmp1, tmp2)
    divergences.append(d.klDivergence(Q))
Q = np.array(Q)
"""

FEATURES = """
d = dcrf.DenseCRF(U.shape[1], U.shape[0])
d.setUnaryEnergy(U)
d.addPairwiseEnergy(features, compat=compat, kernel=dcrf.DIAG_KERNEL,
                    normalization=getattr(dcrf, normalization))
Q = np.array(d.inference(3))
"""

FUNCTIONS = """
results = [
    unary_from_labels(annotation, 4, 0.6), unary_from_labels(annotation, 5, 0.9, zero_unsure=False),
    unary_from_softmax(probs), unary_from_softmax(probs, scale=0.7),
    unary_from_softmax(probs, clip=0.2),
    create_pairwise_gaussian((3.0, 2.0), (4, 5)), create_pairwise_gaussian((3.0,), (7,)),
    create_pairwise_gaussian((3.0, 1.0, 2.0), (4, 5, 2)),
    create_pairwise_bilateral((3.0, 2.0), (4.0, 5.0, 6.0), image, chdim=2),
    create_pairwise_bilateral((3.0, 2.0), (4.0, 5.0, 6.0), image.transpose(2, 0, 1), chdim=0),
    create_pairwise_bilateral((3.0, 2.0), (4.0,), image[..., 0], chdim=-1),
    create_pairwise_bilateral((4.0, 5.0, 6.0), (10.0,), volume, chdim=3),
]
"""


def run(script, **names):
    """The variables of a script with pydensecrf's imports, and with ours."""
    pytest.importorskip("pydensecrf")
    found = []
    for imports in (THEIRS, OURS):
        scope = {"np": np, **{k: v.copy() if hasattr(v, "copy") else v for k, v in names.items()}}
        exec(imports + script, scope)
        found.append(scope)
    return found


def assert_equal_marginals(theirs, ours):
    reference.assert_same_marginals(ours["Q"].T, theirs["Q"].T)
    assert ours["Q"].shape == theirs["Q"].shape and ours["Q"].dtype == np.float32


def annotation_of(shape, num_labels, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_labels + 1, (shape[0] // 6 + 1, shape[1] // 6 + 1))
    return coarse.repeat(6, 0).repeat(6, 1)[: shape[0], : shape[1]]


def test_the_script_for_a_photograph_gives_the_same_labels():
    theirs, ours = run(PHOTOGRAPH, image=photograph(), probs=scores())
    assert_equal_marginals(theirs, ours)
    assert (ours["labels"] != scores().argmax(-1)).mean() > 0.03


def test_the_script_for_an_annotation_gives_the_same_divergence_at_each_step():
    theirs, ours = run(ANNOTATION, image=photograph(), annotation=annotation_of((21, 23), 4))
    assert_equal_marginals(theirs, ours)
    np.testing.assert_allclose(ours["divergences"], theirs["divergences"], rtol=1e-5)
    assert ours["divergences"][-1] < ours["divergences"][0] - 1


NORMALIZATIONS = [kind.name for kind in densecrf.NormalizationType]


def compatibility(kind):
    rng = np.random.default_rng(5)
    return {
        "potts": 2.0,
        "diagonal": -rng.random(4).astype(np.float32),
        "full": rng.random((4, 4)).astype(np.float32),
    }[kind]


def of_features(d=3, n=60, seed=0, **names):
    """Variables of the script FEATURES."""
    rng = np.random.default_rng(seed)
    U, features = 3 * rng.random((4, n)), 2 * rng.random((d, n))
    drawn = {"U": U.astype(np.float32), "features": features.astype(np.float32)}
    return {"compat": 2.0, "normalization": "NORMALIZE_SYMMETRIC"} | drawn | names


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["potts", "diagonal", "full"])
def test_each_compatibility_and_normalization_is_pydensecrfs(kind, normalization):
    names = of_features(compat=compatibility(kind), normalization=normalization)
    assert_equal_marginals(*run(FEATURES, **names))


@pytest.mark.parametrize("d", [1, 4, 5, *(pytest.param(d, marks=pytest.mark.slow) for d in (2, 8))])
def test_features_of_any_dimension_give_pydensecrfs_marginals(d):
    assert_equal_marginals(*run(FEATURES, **of_features(d, 61, seed=d)))


@pytest.mark.filterwarnings("ignore:.*is unary_from_.*:DeprecationWarning")
def test_the_functions_of_utils_give_the_same_arrays():
    image = photograph(4, 5)
    theirs, ours = run(
        FUNCTIONS,
        annotation=annotation_of((9, 9), 4),
        probs=scores().transpose(2, 0, 1),
        image=image,
        volume=image.reshape(2, 2, 15, 1),
    )
    for expected, result in zip(theirs["results"], ours["results"], strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6)
        assert result.dtype == expected.dtype and result.shape == expected.shape
    with pytest.warns(DeprecationWarning, match="unary_from_labels"):
        densecrf.compute_unary(annotation_of((9, 9), 4), 4)


def test_constants_have_pydensecrfs_names_and_numbers():
    theirs = pytest.importorskip("pydensecrf.densecrf")
    for name in [*NORMALIZATIONS, "DIAG_KERNEL", "FULL_KERNEL", "CONST_KERNEL"]:
        assert getattr(densecrf, name) == getattr(theirs, name)


def test_without_pairwise_terms_the_answer_is_the_softmax():
    rng = np.random.default_rng(0)
    d = densecrf.DenseCRF(7, 3)
    U = rng.random((3, 7))
    d.setUnaryEnergy(U)
    expected = np.exp(-U) / np.exp(-U).sum(0)
    np.testing.assert_allclose(d.inference(3), expected, rtol=1e-5)
    entropy = (expected * np.log(expected)).sum()
    assert d.klDivergence(d.inference(0)) == pytest.approx(entropy + (expected * U).sum(), rel=1e-5)


def test_energies_of_infinity_rule_labels_out_as_in_pydensecrf():
    rng = np.random.default_rng(0)
    U = (3 * rng.random((4, 60))).astype(np.float32)
    U[rng.random(U.shape) < 0.3] = np.inf
    U[0] = 1.0
    U[0, :20], U[1, :20] = np.inf, 2.0  # one label left at some points
    for kind in ("potts", "full"):
        theirs, ours = run(FEATURES, **of_features(U=U, compat=compatibility(kind)))
        assert_equal_marginals(theirs, ours)
        assert (ours["Q"][np.isinf(U)] == 0).all()
    assert np.isfinite(ours["d"].klDivergence(ours["Q"]))  # NaN in pydensecrf


def test_a_single_label_is_certain_as_in_pydensecrf():
    theirs, ours = run(
        FEATURES + "Q1, a, b = d.startInference()\nd.stepInference(Q1, a, b)\nQ1 = np.array(Q1)",
        **of_features(2, 10, U=np.ones((1, 10), np.float32)),
    )
    np.testing.assert_array_equal(ours["Q"], theirs["Q"])
    np.testing.assert_array_equal(ours["Q1"], theirs["Q1"])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda d: d.setUnaryEnergy(np.full((4, 12), np.inf)), "only inf at some point"),
        (lambda d: d.setUnaryEnergy(np.full((4, 12), -np.inf)), "NaN or -inf"),
        (lambda d: d.setUnaryEnergy(np.zeros((4, 11))), r"Need \(4, 12\), got \(4, 11\)"),
        (lambda d: d.addPairwiseEnergy(np.zeros((2, 11)), 1), r"Need \(ndims, 12\)"),
        (lambda d: d.addPairwiseGaussian(sxy=0, compat=1), "above 0"),
        (lambda d: d.addPairwiseGaussian(sxy=1, compat=np.ones(3)), "4 numbers"),
        (lambda d: d.addPairwiseGaussian(1, 1, normalization=9), "NORMALIZE_AFTER"),
        (lambda d: d.addPairwiseBilateral(1, 1, np.zeros((4, 3, 3), np.uint8), 1), r"\(3, 4, 3\)"),
        (lambda d: d.inference(-1), "at least 0"),
        (lambda d: densecrf.unary_from_labels(np.array([3]), 2, 0.5), "labels hold 3"),
        (lambda d: densecrf.unary_from_labels(np.array([1]), 2, 1.0), "above 0 and below 1"),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call(densecrf.DenseCRF2D(4, 3, 4))
