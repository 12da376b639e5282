"""The fully connected CRF on small drawn photographs; `test_crf_photographs.py` has real ones."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import crf_reference as reference
import jax
import jax.export  # not imported by jax itself
import jax.numpy as jnp
import numpy as np
import pytest
from crf_drawings import SMALL, C, H, W, lattice_of, photograph, scores

from deeplab_jax import crf
from deeplab_jax.crf import checks, refinement
from deeplab_jax.crf.backends import exact_smooth
from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import UserError


@pytest.mark.parametrize("normalization", ["symmetric", "per_pixel"])
@pytest.mark.parametrize(
    "params",
    [SMALL, pytest.param(crf.RESNET101, marks=pytest.mark.slow)],
    ids=["smooth", "textured"],
)
def test_marginals_are_those_of_pydensecrf_and_as_near_to_exact_ones(params, normalization):
    pytest.importorskip("pydensecrf")
    image, probs = photograph(), scores()
    run = partial(crf.refine, image, probs, params, normalization=normalization)
    ours, theirs, exact = (run(backend=backend) for backend in ("jax", "pydensecrf", "exact"))
    assert (theirs.argmax(-1) != probs.argmax(-1)).mean() > 0.03
    reference.assert_same_marginals(ours, theirs)
    assert np.abs(ours - exact).mean() < 1.001 * np.abs(theirs - exact).mean()


@pytest.mark.slow
def test_white_noise_has_the_largest_lattice_and_pydensecrfs_marginals():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert int(lattice_of(noise, crf.RESNET101).num_vertices) > 5.5 * 60 * 80
    probs = scores(60, 80)
    ours, theirs = (crf.refine(noise, probs, backend=b) for b in ("jax", "pydensecrf"))
    reference.assert_same_labels(ours, theirs)
    # Some pixels of noise stand so near the edge between two answers that rounding shows.
    assert np.quantile(np.abs(ours - theirs), 0.999) <= 1e-5
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_known_arrays_are_checked_inside_anothers_jit(value):
    known = jnp.array([[[1 - value, value]]])
    expected = pytest.raises(UserError, match="NaN") if np.isnan(value) else nullcontext()
    with expected:
        jax.eval_shape(lambda x: (checks.check_values("probabilities", known), x)[1], 1.0)


@pytest.mark.slow
def test_labels_are_exported_in_the_form_of_each_platform():
    image, probs = photograph(), scores()
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (image, probs)]
    with forms_of("plain"):  # as a network is exported
        run = jax.jit(lambda image, probs: crf.best_labels(image, probs, SMALL))
        exported = jax.export.export(run, platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert "stablehlo.case" in exported.mlir_module()  # conditionals are for CPUs alone
    found = jax.export.deserialize(exported.serialize()).call(image, probs)
    np.testing.assert_array_equal(found, crf.refine(image, probs, SMALL).argmax(-1))


@pytest.mark.slow
def test_marginals_inside_a_callers_jit_are_those_of_refine():
    image, probs = photograph(), scores()
    run = jax.jit(lambda image, probs: crf.marginals(image, crf.energies(probs), SMALL))
    expected = crf.refine(image, probs, SMALL)
    np.testing.assert_allclose(run(image[None], probs[None])[0], expected, atol=1e-6)
    np.testing.assert_allclose(run(image, probs), expected, atol=1e-6)


def as_one_problem(images, probs, valid, params):
    """What refine_batch does on accelerators."""
    options = {"num_iterations": 10, "normalization": "symmetric", "device": None}
    return refinement.pruned_marginals(images, probs, valid, params, prune_below=None, **options)


@pytest.mark.parametrize("run", [crf.refine_batch, as_one_problem])
def test_photographs_of_a_batch_and_their_padding_are_independent(run):
    sizes = [(15, 17), (9, 14)]
    images = np.random.default_rng(0).integers(0, 255, (2, 15, 17, 3), np.uint8)
    probs = np.random.default_rng(1).dirichlet(np.ones(C), (2, 15, 17)).astype(np.float32)
    valid = np.zeros((2, 15, 17), bool)
    singles = []
    for i, (h, w) in enumerate(sizes):
        images[i, :h, :w], probs[i, :h, :w] = photograph(h, w, seed=i), scores(h, w, seed=i)
        valid[i, :h, :w] = True
        singles.append(crf.refine(images[i, :h, :w], probs[i, :h, :w], SMALL))
    batch = run(images, probs, valid, SMALL)
    for i, (h, w) in enumerate(sizes):
        np.testing.assert_allclose(batch[i, :h, :w], singles[i], atol=1e-6)


def test_other_parameters_do_not_compile_anew():
    crf.refine(photograph(), scores(), SMALL)
    params = replace(SMALL, appearance_weight=5.0, sigma_xy=20.01)
    compiled = []

    def listener(event, *_, **__):
        compiled.append("backend_compile" in event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        assert np.abs(crf.refine(photograph(), scores(), params) - scores()).max() > 0.1
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert not any(compiled)


def test_where_nothing_is_known_or_weighs_nothing_changes():
    uniform = np.full((H, W, C), 1 / C, np.float32)
    np.testing.assert_allclose(crf.refine(photograph(), uniform, SMALL), uniform, atol=1e-6)
    params = replace(SMALL, appearance_weight=0.0, smoothness_weight=0.0)
    np.testing.assert_allclose(crf.refine(photograph(), scores(), params), scores(), atol=1e-6)


@pytest.mark.parametrize("n", [100, 1500])  # less and more than one tile
def test_exact_smoothing_is_the_dense_kernel(n):
    rng = np.random.default_rng(0)
    features = (200 + rng.normal(0, 2, (5, n))).astype(np.float32)
    values = rng.random((n, 3), np.float32)
    expected = reference.dense_kernel(features) @ values
    np.testing.assert_allclose(
        exact_smooth(jnp.asarray(features), jnp.asarray(values)), expected, rtol=1e-4
    )


def rare(share):
    """Probabilities of twelve labels, of which nine have this share of theirs everywhere."""
    probs = scores(c=12)
    probs[..., 3:] *= share
    return probs / probs.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("probs", "least", "most"),
    [(rare(0.02), 1e-9, 5e-3), (rare(0), 0, 1e-6), (scores(), 0, 0)],
    ids=["rare", "impossible", "none"],
)
def test_pruning_changes_the_kept_labels_little(probs, least, most):
    threshold = 0.03 if probs.shape[-1] == 12 else 1e-3
    full = crf.refine(photograph(), probs, SMALL)
    pruned = crf.refine(photograph(), probs, SMALL, prune_below=threshold)
    np.testing.assert_allclose(pruned.sum(-1), 1, atol=1e-5)
    assert least <= np.abs(pruned - full).max() <= most
    np.testing.assert_array_equal(pruned.argmax(-1), full.argmax(-1))


@pytest.mark.slow
def test_gradients_of_marginals_are_finite_differences_in_float64_and_reach_deviations():
    image, probs = photograph(12, 14), scores(12, 14)
    with jax.enable_x64(True):
        unary = -jnp.log(jnp.asarray(probs, jnp.float64))[None]
        target = np.random.default_rng(3).normal(size=unary.shape)

        def loss(sigma_rgb, energies, appearance, smoothness):
            params = crf.CRFParams(appearance, 20.0, sigma_rgb, smoothness, 1.0)
            q = crf.marginals(image[None], energies, params, num_iterations=5)
            return (q * target).sum()

        point = [unary, jnp.float64(4.0), jnp.float64(3.0)]
        reference.assert_derivatives(partial(loss, 8.0), point, rtol=1e-6)
        gradient = jax.jit(jax.grad(loss), compiler_options=reference.NEWER_LOOPS)(8.0, *point)
        assert np.isfinite(gradient) and gradient != 0


NOISE = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
HUGE = crf.CRFParams(sigma_xy=1e6, sigma_rgb=1e6, sigma_smoothness=1e6)
TINY = crf.CRFParams(sigma_xy=0.5, sigma_rgb=0.3, sigma_smoothness=0.05)
HEAVY = crf.CRFParams(appearance_weight=1000.0, smoothness_weight=500.0)


@pytest.mark.parametrize(
    ("image", "num_labels", "params"),
    [
        *((photograph(1, 1), 3, SMALL), (photograph(1, 7), 2, SMALL), (photograph(5, 1), 2, SMALL)),
        (NOISE, 256, SMALL),
        *(pytest.param(NOISE, 5, p, marks=pytest.mark.slow) for p in (HUGE, TINY, HEAVY)),
    ],
)
def test_marginals_of_any_size_number_of_labels_and_parameters_sum_to_1(image, num_labels, params):
    probs = scores(*image.shape[:2], num_labels)
    ours = crf.refine(image, probs, params)
    assert ours.shape == probs.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)


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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"probs": scores(w=22)}, r"21, 23, 3\) and \((1, )?21, 22, 5\)"),
        ({"image": photograph()[..., 0]}, r"21, 23\) and \((1, )?21, 23, 5\); a grey.*crf.kernel"),
        ({"probs": scores().argmax(-1)}, "int64 of shape .*21, 23.; labels[?] see crf.refine_lab"),
        ({"image": photograph() / 255}, "uint8.*float64"),
        ({"probs": scores() * np.nan}, "NaN"),
        ({"probs": scores(c=1)}, "at least 2 classes"),
        ({"probs": scores() - 0.5}, "logits[?] take the softmax"),
        ({"probs": 3 * scores()}, "logits[?] take the softmax"),
        ({"params": crf.CRFParams(sigma_rgb=-1.0)}, "sigma_rgb must be above 0"),
        ({"params": crf.CRFParams(sigma_xy=(1.0, 2.0, 3.0))}, "sigma_xy is a number, or 2 numbers"),
        ({"params": crf.CRFParams(appearance_weight=float("nan"))}, "appearance_weight"),
        ({"num_iterations": -1}, "num_iterations is a whole number of at least 0, got -1"),
        ({"prune_below": 2.0}, "prune_below"),
    ],
)
def test_a_mistake_is_one_sentence(change, sentence):
    arguments = {"image": photograph(), "probs": scores(), "params": SMALL} | change
    for function in (crf.refine, one_of_a_batch):
        with pytest.raises(UserError, match=sentence):
            function(**arguments)


def test_a_batch_has_a_mask_for_each_photograph():
    with pytest.raises(ValueError, match=r"\(1, 21, 23, 3\), got \(21, 23\)"):
        crf.refine_batch(photograph()[None], scores()[None], np.ones((H, W), bool), SMALL)


def one_of_a_batch(image, probs, **options):
    return crf.refine_batch(image[None], probs[None], **options)


def test_a_missing_pydensecrf_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        crf.refine(photograph(), scores(), SMALL, backend="pydensecrf")


def mean_field_of_points(features, energies):
    return crf.mean_field(energies, [crf.kernel(features)], [np.ones((4, 4))], 2)


IMAGE, UNARY = (
    jax.ShapeDtypeStruct((2, 33, 40, channels), kind)
    for channels, kind in ((3, jnp.uint8), (21, jnp.float32))
)
FEATURES, ENERGIES = (jax.ShapeDtypeStruct((30, n), jnp.float32) for n in (7, 4))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("function", "shapes"),
    [(crf.marginals, (IMAGE, UNARY)), (mean_field_of_points, (FEATURES, ENERGIES))],
)
def test_what_runs_inside_jit_lowers_for_accelerators_and_keeps_all_bits_there(
    function, shapes, platform
):
    program = jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("HIGHEST" in program) == (function is mean_field_of_points)  # the other has no product
    assert "precision = [DEFAULT, DEFAULT]" not in program
