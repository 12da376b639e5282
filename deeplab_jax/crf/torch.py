"""The dense CRF for PyTorch: a layer that is trained through its mean field, and the loss.

    crf = DenseCRF(iterations=5)
    log_probs = crf(image, network(image))  # image uint8 [b, 3, h, w], logits [b, c, h, w]
    loss = cross_entropy(log_probs, labels)

Tensors on a device that JAX has stay there; others go over the host. Float64 is computed in
float64, all else in float32. torch is no dependency of the package.
"""

# pyright: reportAttributeAccessIssue=false, reportMissingImports=false
# because torch is not installed where the project is checked.

from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    import torch
except ImportError:
    raise ImportError("deeplab_jax.crf.torch needs torch: type `pip install torch`") from None

from deeplab_jax.choices import CRFNormalization as Normalization
from deeplab_jax.crf.checks import check_photographs, check_sigma, require
from deeplab_jax.crf.features import appearance_features, pixels_of, positions
from deeplab_jax.crf.forked import refuse_forked
from deeplab_jax.crf.kernels import host_lattice
from deeplab_jax.crf.loss import cut, known_lattice, padded_smooth
from deeplab_jax.crf.mean_field import iterate
from deeplab_jax.crf.params import RESNET101, CRFParams


class DenseCRF(torch.nn.Module):
    """Log marginals of a fully connected CRF, in place of a network's logits.

    Their softmax are the marginals, so they go into a cross entropy as they are. Gradients reach
    the logits and the weights of the two kernels, which are parameters and start from `params`.
    """

    def __init__(
        self,
        params: CRFParams = RESNET101,
        iterations: int = 5,
        *,
        normalization: Normalization = "symmetric",
    ):
        super().__init__()
        self.params, self.iterations, self.normalization = params, iterations, normalization
        for name in ("appearance_weight", "smoothness_weight"):
            weight = torch.tensor(float(getattr(params, name)))
            setattr(self, name, torch.nn.Parameter(weight))

    def forward(self, image: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Log marginals `[b, c, h, w]`, given RGB uint8 `[b, 3, h, w]` and logits `[b, c, h, w]`,
        floats before the softmax of any precision (AMP)."""
        check_tensors(image, logits, "logits")
        logits = at_least_single(logits)
        photographs, scores = on_host(image), on_host(logits)
        options = self.params, self.iterations, self.normalization, None
        check_photographs(photographs, scores, *options, what="energies")
        shape = photographs.shape[:3]
        points = pixels_of(np.ones(shape, bool))
        features = appearance_features(photographs, self.params)
        with precision_of(logits):
            lattices = [
                host_lattice(rows, *points, self.normalization)
                for rows in (features, positions(shape, self.params.sigma_smoothness))
            ]
        function = partial(mean_field, lattices=lattices, iterations=self.iterations)
        return Through.apply(function, logits, self.appearance_weight, self.smoothness_weight)


@partial(jax.jit, static_argnames="iterations")
def mean_field(logits, appearance_weight, smoothness_weight, *, lattices, iterations):
    """Log marginals, and the function that takes their cotangent to those of the arguments."""

    def log_marginals(logits, *weights):
        b, c, h, w = logits.shape
        energies = -jax.nn.log_softmax(jnp.moveaxis(logits, 1, -1)).reshape(-1, c)
        rows = jnp.pad(energies, ((0, lattices[0].num_points - len(energies)), (0, 0)))
        marginals = iterate(rows, lattices, weights, iterations)[: b * h * w]
        logs = jnp.log(jnp.maximum(marginals, jnp.finfo(jnp.float32).tiny))
        return jnp.moveaxis(logs.reshape(b, h, w, c), -1, 1)

    return jax.vjp(log_marginals, logits, appearance_weight, smoothness_weight)


def dense_crf_loss(
    image: torch.Tensor,
    probs: torch.Tensor,
    *,
    sigma_xy: float = 100.0,
    sigma_rgb: float = 15.0,
    scale: float = 0.5,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """The dense CRF loss of Tang et al. 2018, a scalar: `crf.loss.dense_crf_loss`.

    `image` is `[b, 3, h, w]`, uint8 or floats in the unit of `sigma_rgb`; `probs` are floats
    `[b, c, h, w]` after the softmax, which gradients reach; `valid`, bool `[b, h, w]`, is false in
    padding. Pixels are compared at the size `scale`, with which `sigma_xy` shrinks.
    """
    check_tensors(image, probs, "probabilities")
    check_sigma("sigma_xy", sigma_xy, 2)
    check_sigma("sigma_rgb", sigma_rgb, image.shape[1])
    resize = partial(torch.nn.functional.interpolate, scale_factor=scale)
    probs = at_least_single(probs)
    mask = torch.ones_like(probs[:, :1]) if valid is None else valid[:, None].to(probs)
    if scale != 1:
        image, mask = resize(image.float()), resize(mask)
        probs = resize(probs, mode="bilinear", align_corners=False)
    params = CRFParams(sigma_xy=scale * np.asarray(sigma_xy), sigma_rgb=sigma_rgb)
    features = appearance_features(on_host(image), params)
    known = (mask[:, 0] > 0).cpu().numpy()
    with precision_of(probs):
        lattice = known_lattice(features, *pixels_of(known))
    return Through.apply(partial(loss, lattice=lattice, valid=known), probs)


@jax.jit
def loss(probs, *, lattice, valid):
    """The loss, and the function that takes its cotangent to that of the probabilities."""

    def of(probs):
        return cut(partial(padded_smooth, lattice), jnp.moveaxis(probs, 1, -1), valid)

    return jax.vjp(of, probs)


pull_back = jax.jit(lambda pull, cotangent: pull(cotangent))


class Through(torch.autograd.Function):
    """A function of JAX over tensors; it returns its result and what pulls cotangents back."""

    @staticmethod
    def forward(ctx: Any, function: Any, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.like = [(x.device, x.dtype) for x in tensors]
        with precision_of(tensors[0]):
            result, ctx.pull = function(*map(to_jax, tensors))
        return to_torch(result, *ctx.like[0])

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple:  # pyright: ignore
        with precision_of(cotangent):
            found = pull_back(ctx.pull, to_jax(cotangent))
        return None, *(to_torch(x, *like) for x, like in zip(found, ctx.like, strict=True))


def check_tensors(image: torch.Tensor, scores: torch.Tensor, what: str) -> None:
    """Refuses tensors of other shapes, and processes without XLA."""
    refuse_forked("deeplab_jax.crf.torch")
    same = image.shape[:1] + image.shape[2:] == scores.shape[:1] + scores.shape[2:]
    require(
        image.ndim == scores.ndim == 4 and same,
        f"expected images [b, 3, h, w] and {what} [b, c, h, w] of the same height and width, "
        f"got {tuple(image.shape)} and {tuple(scores.shape)}",
    )


def at_least_single(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or in float64 if it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def precision_of(tensor: torch.Tensor) -> Any:
    """A context in which JAX computes as precisely as the tensor is."""
    return jax.enable_x64(tensor.dtype == torch.float64)


def on_host(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as NumPy's, channels last."""
    return np.moveaxis(tensor.detach().cpu().numpy(), 1, -1)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A copy on the tensor's device, or on JAX's first where JAX lacks it."""
    tensor = tensor.detach()
    if not tensor.is_cpu:
        with suppress(BufferError, RuntimeError):
            return jax.dlpack.from_dlpack(tensor.clone())
    return jnp.array(tensor.cpu().numpy())


def to_torch(array: jax.Array, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A copy as a tensor of this kind."""
    if array.devices().pop().platform == "cpu":
        return torch.from_numpy(np.array(array)).to(device, dtype)
    return torch.from_dlpack(array).clone().to(device, dtype)
