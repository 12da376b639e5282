"""The CRF in processes that were forked after JAX had started, as pydensecrf's scripts do."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from crf_drawings import SMALL, C, photograph, scores
from jax._src import xla_bridge

from deeplab_jax import crf
from deeplab_jax.crf import densecrf, forked
from deeplab_jax.types import UserError

REPOSITORY = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore:.*multi-threaded")


def in_a_fork(function, *arguments):
    """What a worker of a forked Pool returns; a worker that hangs is a failure."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(function, arguments).get(timeout=60)


def steps(image):
    """A DenseCRF2D with a compatibility matrix, one update after another."""
    d = densecrf.DenseCRF2D(image.shape[1], image.shape[0], C)
    d.setUnaryEnergy(crf.energies(scores()).reshape(-1, C).T)
    d.addPairwiseGaussian(sxy=2, compat=np.random.default_rng(0).random((C, C)).astype(np.float32))
    d.addPairwiseBilateral(sxy=20, srgb=8, rgbim=image, compat=4)
    Q, *rest = d.startInference()
    for _ in range(3):
        d.stepInference(Q, *rest)
    return [np.array(Q), d.klDivergence(Q)]


LABELS = scores().argmax(-1)
CALLS = {
    "refine": lambda image: crf.refine(image, scores(), SMALL),
    "per pixel": lambda image: crf.refine(image, scores(), SMALL, normalization="per_pixel"),
    "pruned": lambda image: crf.refine(image, scores(), SMALL, prune_below=0.2),
    "a batch": lambda image: crf.refine_batch(image[None], scores()[None], None, SMALL),
    "at a smaller scale": lambda image: crf.refine(image, scores(), SMALL, max_pixels=200),
    "steps": steps,
    "labels": lambda image: crf.refine_labels(image, LABELS, SMALL, max_pixels=200),
}


def call(name, image):
    return CALLS[name](image)


@pytest.mark.parametrize("name", CALLS)
def test_a_forked_process_gives_the_result_of_its_parent(name):
    expected = call(name, photograph())
    found = in_a_fork(call, name, photograph())
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)
    assert not forked.is_forked()


def test_kernels_of_the_parent_filter_in_a_forked_process():
    kernel = crf.kernel(crf.grid_features((9, 11), 2.0))
    values = np.random.default_rng(0).random((9, 11, 3), np.float32)
    expected = np.asarray(crf.filter(kernel, values))
    np.testing.assert_allclose(in_a_fork(partial(crf.filter, kernel), values), expected, rtol=1e-5)


def test_what_needs_xla_is_refused_in_a_forked_process_in_one_sentence():
    unary = crf.energies(scores())
    with pytest.raises(UserError, match="crf.marginals needs XLA.*'spawn'"):
        in_a_fork(crf.marginals, photograph(), unary)
    with pytest.raises(UserError, match="backend='exact' needs XLA"):
        in_a_fork(partial(crf.refine, backend="exact"), photograph(), scores())


def test_threads_give_the_same_results():
    def refined(seed):
        return crf.refine(photograph(seed=seed), scores(), SMALL)

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(refined, range(3)))
    np.testing.assert_array_equal(found, [refined(i) for i in range(3)])


def test_a_fork_before_jax_has_started_uses_it():
    assert forked.has_started is xla_bridge.backends_are_initialized
    program = """
import os
from deeplab_jax.crf import forked
child = os.fork()
if child == 0:
    os._exit(int(forked.is_forked()))
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
