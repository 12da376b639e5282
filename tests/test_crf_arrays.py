"""Arrays of other frameworks: in by DLPack, out in their own kind."""

import multiprocessing
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from crf_drawings import SMALL, C, photograph, scores

from deeplab_jax import crf
from deeplab_jax.crf import densecrf
from deeplab_jax.types import UserError


class Tensor:
    """An array of a framework that shares its memory by DLPack and can do nothing else."""

    def __init__(self, array):
        self.array = np.array(array)
        self.dtype, self.shape = self.array.dtype, self.array.shape

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


Tensor.__module__ = "framework.core"


class OnAnotherDevice(Tensor):
    def __dlpack_device__(self):
        return 2, 0  # CUDA

    def __dlpack__(self, **options):
        raise BufferError("it lies elsewhere")


@pytest.fixture(params=["framework", "torch"])
def framework(request, monkeypatch):
    """(kind of the arrays, NumPy -> array, array -> NumPy)."""
    if request.param == "torch":
        torch = pytest.importorskip("torch", reason="torch is not installed")
        return torch.Tensor, lambda x: torch.from_numpy(np.array(x)), lambda x: x.numpy()
    stub = SimpleNamespace(from_dlpack=lambda x: Tensor(np.from_dlpack(x)))
    monkeypatch.setitem(sys.modules, "framework", stub)
    return Tensor, Tensor, lambda x: x.array


def test_the_same_framework_comes_out(framework):
    kind, wrap, unwrap = framework
    image, probs, labels = photograph(), scores(), scores().argmax(-1)
    features = crf.image_features(image, 20.0, 8.0)
    penalty = np.random.default_rng(0).random((C, C), np.float32)

    def mean_field(image, probs, features, penalty):
        made = crf.kernel(features)
        return crf.mean_field(crf.energies(probs), [made, made], [penalty, 1.0], 2)

    calls = [
        (lambda image, probs: crf.refine(image, probs, SMALL), image, probs),
        (lambda x, probs: crf.refine(x, probs, SMALL, max_pixels=200), image, probs),
        (lambda x, probs, v: crf.refine_batch(x, probs, v, SMALL), image[None], probs[None])
        + (np.ones((1, *image.shape[:2]), bool),),
        (lambda image, labels: crf.refine_labels(image, labels, SMALL), image, labels),
        (lambda x: crf.image_features(x, 3.0, 4.0), image),
        (lambda features, values: crf.filter(crf.kernel(features), values), features, probs),
        (mean_field, image, probs, features, penalty),
        (lambda labels: crf.unary_from_labels(labels, C), labels),
    ]
    for function, *given in calls:
        expected = np.asarray(function(*given))
        found = function(*map(wrap, given))
        assert isinstance(found, kind)
        np.testing.assert_array_equal(unwrap(found), expected)
        assert unwrap(found).flags.writeable and unwrap(found).dtype == expected.dtype


def test_channels_come_first_where_the_layout_says_so(framework):
    _, wrap, unwrap = framework
    image, probs = photograph(), scores()
    expected = crf.refine(image, probs, SMALL)
    first = [np.ascontiguousarray(np.moveaxis(x, -1, 0)) for x in (image, probs)]
    found = unwrap(crf.refine(*map(wrap, first), SMALL, layout="chw"))
    np.testing.assert_array_equal(np.moveaxis(found, 0, -1), expected)
    batch = unwrap(crf.refine_batch(*(wrap(x[None]) for x in first), None, SMALL, layout="chw"))
    np.testing.assert_array_equal(batch[0], found)
    labels = crf.refine_labels(wrap(first[0]), wrap(probs.argmax(-1)), SMALL, layout="chw")
    expected = crf.refine_labels(image, probs.argmax(-1), SMALL)
    np.testing.assert_array_equal(unwrap(labels), expected)
    with pytest.raises(UserError, match="layout is 'hwc' or 'chw', got 'nchw'"):
        crf.refine(image, probs, layout="nchw")


def test_densecrf_takes_any_framework_in_pydensecrfs_orders(framework):
    _, wrap, _ = framework
    image, energies = photograph(), crf.energies(scores()).reshape(-1, C).T.copy()

    def marginals(wrap):
        d = densecrf.DenseCRF2D(image.shape[1], image.shape[0], C)
        d.setUnaryEnergy(wrap(energies))
        d.addPairwiseBilateral(sxy=20, srgb=8, rgbim=wrap(image), compat=4)
        d.addPairwiseEnergy(wrap(np.zeros((2, energies.shape[1]), np.float32)), compat=1)
        return d.inference(3)

    np.testing.assert_array_equal(marginals(wrap), marginals(lambda x: x))
    with pytest.raises(UserError, match=r"Need \(5, 483\), got \(483, 5\)"):
        densecrf.DenseCRF(energies.shape[1], C).setUnaryEnergy(wrap(energies.T))


def test_what_cannot_be_shared_is_one_sentence():
    with pytest.raises(UserError, match="OnAnotherDevice that JAX cannot share.*cuda.*on a CPU"):
        crf.refine(photograph(), OnAnotherDevice(scores()))
    with pytest.raises(UserError, match=r"probs is a builtins.list.*np.asarray\(probs\)"):
        crf.energies([0.5, 0.5])


def test_torch_tensors_of_amp_are_refined_and_those_with_gradients_refused():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    image, probs = torch.from_numpy(photograph()), torch.from_numpy(scores())
    expected = crf.refine(image, probs, SMALL)
    for kind in (torch.float16, torch.bfloat16):
        found = crf.refine(image, probs.to(kind), SMALL)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found, expected, atol=0.1)
    with pytest.raises(UserError, match="torch.Tensor that JAX cannot share.*crf.torch.DenseCRF"):
        crf.refine(image, probs.requires_grad_(), SMALL)


class Refined:
    """A dataset whose items are refined by the workers of a loader."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        torch = pytest.importorskip("torch", reason="torch is not installed")
        image = torch.from_numpy(photograph(seed=i))
        return crf.refine(image, torch.from_numpy(scores()), SMALL)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore:.*multi-threaded")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_the_workers_of_a_data_loader_refine(start):
    data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    expected = np.stack([crf.refine(photograph(seed=i), scores(), SMALL) for i in range(4)])
    context = multiprocessing.get_context(start)
    loader = data.DataLoader(
        Refined(), batch_size=2, num_workers=2, timeout=100, multiprocessing_context=context
    )
    found = np.concatenate([np.asarray(batch) for batch in loader])
    np.testing.assert_allclose(found, expected, atol=1e-5)
