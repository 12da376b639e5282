"""The CRF as a layer and a loss of PyTorch."""

from functools import partial

import numpy as np
import pytest
from crf_drawings import SMALL, C, photograph, scores

from deeplab_jax import crf
from deeplab_jax.crf.loss import dense_crf_loss
from deeplab_jax.types import UserError

torch = pytest.importorskip("torch", reason="torch is not installed")
from deeplab_jax.crf import torch as layers  # noqa: E402


def tensors(h=21, w=23, c=C):
    """Photographs and logits of a batch of two."""
    images = np.stack([photograph(h, w, seed) for seed in (0, 1)])
    logits = np.log([scores(h, w, c, seed) for seed in (1, 2)])
    return [torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for x in (images, logits)]


def test_the_layer_gives_the_marginals_of_refine_for_each_photograph():
    image, logits = tensors()
    layer = layers.DenseCRF(SMALL, iterations=4, normalization="per_pixel")
    found = layer(image, logits)
    assert set(layer.state_dict()) == {"appearance_weight", "smoothness_weight"}
    options = {"num_iterations": 4, "normalization": "per_pixel", "layout": "chw"}
    expected = crf.refine_batch(image, logits.softmax(1), None, SMALL, **options)
    assert found.dtype == torch.float32 and found.shape == logits.shape
    torch.testing.assert_close(found.softmax(1), expected, atol=1e-5, rtol=0)


def test_gradients_of_the_layer_and_the_loss_pass_gradcheck_in_float64():
    image, logits = tensors(7, 8, 3)
    logits = logits.double().requires_grad_()
    layer = layers.DenseCRF(SMALL, iterations=2).double()
    weights = layer.appearance_weight, layer.smoothness_weight
    assert torch.autograd.gradcheck(lambda x, *_: layer(image, x), (logits, *weights))
    loss = partial(layers.dense_crf_loss, image, sigma_xy=10.0, scale=1.0)
    assert torch.autograd.gradcheck(lambda x: 1e-3 * loss(x.softmax(1)), (logits,))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_logits_of_amp_get_gradients_of_their_kind(kind):
    image, logits = tensors()
    expected = layers.DenseCRF(SMALL, iterations=2)(image, logits.to(kind).float())
    logits = logits.to(kind).requires_grad_()
    found = layers.DenseCRF(SMALL, iterations=2)(image, logits)
    torch.testing.assert_close(found, expected)
    found.square().mean().backward()
    assert logits.grad.dtype == kind and logits.grad.abs().sum() > 0
    probs = logits.softmax(1)
    assert layers.dense_crf_loss(image, probs).dtype == torch.float32


def test_the_loss_is_that_of_jax():
    image, logits = tensors()
    probs = logits.softmax(1).requires_grad_()
    valid = torch.arange(23).expand(2, 21, 23) < 18
    ours = [np.moveaxis(x.detach().numpy(), 1, -1) for x in (image, probs)]
    options = {"sigma_xy": 10.0, "sigma_rgb": 15.0}
    expected = dense_crf_loss(*ours, valid=valid.numpy(), **options)
    found = layers.dense_crf_loss(image, probs, scale=1.0, valid=valid, **options)
    np.testing.assert_allclose(found.item(), float(expected), rtol=1e-5)
    resized = [torch.nn.functional.interpolate(x, scale_factor=0.5) for x in (image, probs)]
    half = layers.dense_crf_loss(image, probs, **options)
    smaller = layers.dense_crf_loss(*resized, sigma_xy=5.0, sigma_rgb=15.0, scale=1.0)
    assert half.item() == pytest.approx(smaller.item(), rel=0.05)  # other interpolation


def test_tensors_that_do_not_fit_are_one_sentence():
    image, logits = tensors()
    with pytest.raises(UserError, match=r"\[b, 3, h, w\].*\(2, 3, 21, 23\) and \(2, 5, 21, 22\)"):
        layers.DenseCRF()(image, logits[..., :22])
    with pytest.raises(UserError, match="expected an image .* 3"):
        layers.DenseCRF()(image[:, :2], logits)
    with pytest.raises(UserError, match="sigma_xy must be above 0"):
        layers.dense_crf_loss(image, logits.softmax(1), sigma_xy=0.0)
