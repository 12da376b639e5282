"""The first convolution of a network whose weights come from photographs of other channels."""

import numpy as np
from jaxtyping import Float

from deeplab_jax.types import UserError
from deeplab_jax.weights.files import Flat

KERNELS = ("trunk/conv1/kernel", "trunk/conv1_1/kernel")
"""Names of the first kernel, `[k, k, channels, features]`, of a ResNet and of VGG."""


def inflate(
    kernel: Float[np.ndarray, "k k 3 f"], channels: int
) -> Float[np.ndarray, "k k channels f"]:
    """The mean over red, green and blue, times 3 / channels, for every channel.

    What the layer makes of a photograph whose channels are all equal stays the same.
    """
    mean = kernel.astype(np.float64).mean(2, keepdims=True) * (3 / channels)
    return np.repeat(mean, channels, axis=2).astype(kernel.dtype)


def fit(given: Flat, channels: int) -> Flat:
    """The weights with a first kernel for photographs of so many channels.

    One for as many is kept, one for RGB is inflated.

    Raises:
      UserError: it is for neither.
    """
    name, found = _first_kernel(given)
    if name is None or found == channels:
        return given
    if found != 3:
        raise UserError(
            f"the weights are for photographs of {found} channels, and the data has {channels}; "
            f"give weights for RGB, or for {channels} channels"
        )
    return {**given, name: inflate(np.asarray(given[name]), channels)}


def describe(given: Flat, channels: int) -> str:
    """What `fit` does, as a line to print."""
    _, found = _first_kernel(given)
    if found in (None, channels):
        return f"the first convolution is that of the weights, for {channels} channels"
    return (
        f"the first convolution is inflated from {found} to {channels} channels: each is the mean "
        f"of the {found}, times {found}/{channels}"
    )


def _first_kernel(given: Flat) -> tuple[str | None, int | None]:
    """Name of the first kernel and its channels; None where the names are those of no network of
    ours."""
    name = next((name for name in KERNELS if name in given), None)
    return name, None if name is None else given[name].shape[2]
