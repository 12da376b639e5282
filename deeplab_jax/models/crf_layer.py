"""A network that ends in a fully connected CRF, trained through its mean field (ours)."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from deeplab_jax import crf
from deeplab_jax.models.deeplab import DeepLabV2, in_order
from deeplab_jax.models.layers import EVALUATION, Mode
from deeplab_jax.ops.resize import Alignment
from deeplab_jax.types import Array, Logits

WEIGHTS = ("appearance_weight", "smoothness_weight")
"""What is learnt of the CRF: the weights of its two kernels (Equation 3)."""


class KernelWeights(nn.Module):
    """The learnt parameters, which start at those of the release for ResNet-101."""

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        def start(name):
            return lambda key: jnp.float32(getattr(crf.RESNET101, name))

        return {name: self.param(name, start(name)) for name in WEIGHTS}


def start_weights() -> dict[str, np.ndarray]:
    """The parameters before training, by their names in the network."""
    return {f"crf/{name}": np.array(getattr(crf.RESNET101, name), np.float32) for name in WEIGHTS}


class WithCRF(nn.Module):
    """The network, with one score map more: log marginals of the CRF at the size of the inputs.

    Parameters are the network's under their own names, and `crf`. Everything but `score_maps` is
    the network's own.
    """

    network: DeepLabV2
    num_iterations: int
    bands: tuple[int, ...] | None = None
    """Channels of the photograph that stand for its colours; None: three channels are."""

    def setup(self):
        nn.share_scope(self, self.network)
        self.crf = KernelWeights()

    @property
    def num_classes(self) -> int:
        return self.network.num_classes

    @property
    def alignment(self) -> Alignment:
        return self.network.alignment

    @property
    def mean_bgr(self) -> tuple[float, ...]:
        return self.network.mean_bgr

    @property
    def num_channels(self) -> int:
        return self.network.num_channels

    def __call__(self, inputs: Float[jax.Array, "b h w channels"]) -> Logits:
        self.crf()
        return self.network(inputs)

    def score_maps(
        self, inputs: Float[jax.Array, "b h w channels"], mode: Mode = EVALUATION
    ) -> tuple[Float[jax.Array, "b _ _ c"], ...]:
        """Those of the network, then the CRF's."""
        maps = self.network.score_maps(inputs, mode)
        rows, columns = inputs.shape[1:3]
        logits = self.network.to_full_size(maps[0], (rows, columns))
        image = image_of(inputs, self.mean_bgr)
        options = {"num_iterations": self.num_iterations, "bands": self.bands}
        return *maps, log_marginals(image, logits, self.crf(), **options)


def log_marginals(
    image: UInt8[Array, "b h w channels"],
    logits: Float[jax.Array, "b h w c"],
    weights: dict[str, jax.Array],
    *,
    num_iterations: int,
    bands: tuple[int, ...] | None = None,
) -> Float[jax.Array, "b h w c"]:
    """Logarithms of the CRF's marginals; `weights` are those of WEIGHTS."""
    params = replace(crf.RESNET101, **weights)
    energies = -jax.nn.log_softmax(logits)
    options = {"num_iterations": num_iterations, "bands": bands}
    marginals = crf.marginals(image, energies, params, **options)
    return jnp.log(jnp.maximum(marginals, jnp.finfo(jnp.float32).tiny))


def image_of(inputs: Float[jax.Array, "b h w channels"], mean_bgr: tuple[float, ...]) -> jax.Array:
    """The photographs, uint8 `[b, h, w, channels]`, of which `make_inputs` made the inputs."""
    return in_order(jnp.rint(inputs + jnp.array(mean_bgr, jnp.float32))).astype(jnp.uint8)
