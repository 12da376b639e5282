"""The first convolution of a network whose weights come from photographs of other channels."""

import numpy as np

from deeplab_jax.types import UserError
from deeplab_jax.weights.files import Flat

KERNELS = ("trunk/conv1/kernel", "trunk/conv1_1/kernel")
"""Names of the first kernel, `[k, k, channels, features]`, of a ResNet and of VGG."""


def gain(flat: Flat) -> float | None:
    """Deviation of the first layer's output for white noise of deviation 1, batch norm included.

    It is the median over the features that are alive. None where there is no batch norm, or one
    of another size.
    """
    kernel, scale, var = (flat.get(f"trunk/conv1/{role}") for role in ("kernel", "scale", "var"))
    if kernel is None or scale is None or var is None:
        return None
    if not scale.shape == var.shape == kernel.shape[3:]:
        return None
    of_kernel = np.sqrt(np.square(kernel, dtype=np.float64).sum((0, 1, 2)))
    gains = of_kernel * abs(scale) / np.sqrt(np.maximum(var, 0) + 1e-5)
    alive = gains[gains > 0.01 * gains.max(initial=0)]
    return float(np.median(alive)) if alive.size else None


def fit(given: Flat, channels: int) -> Flat:
    """The weights with a first kernel for photographs of so many channels.

    One for as many is kept. One for RGB is inflated: every channel gets the mean over red, green
    and blue, times 3 / channels, so that the layer makes the same of a photograph whose channels
    are all equal. One for neither is a UserError.
    """
    name = next((name for name in KERNELS if name in given), None)
    if name is None or (found := given[name].shape[2]) == channels:
        return given
    if found != 3:
        raise UserError(
            f"the weights are for photographs of {found} channels, and the data has {channels}; "
            f"give weights for RGB, or for {channels} channels"
        )
    kernel = np.asarray(given[name])
    mean = kernel.astype(np.float64).mean(2, keepdims=True) * (3 / channels)
    return {**given, name: np.repeat(mean, channels, axis=2).astype(kernel.dtype)}


def describe(given: Flat, channels: int) -> str:
    """What `fit` does, as a line to print."""
    found = next((given[name].shape[2] for name in KERNELS if name in given), channels)
    if found == channels:
        return f"the first convolution is that of the weights, for {channels} channels"
    return (
        f"the first convolution is inflated from {found} to {channels} channels: each is the mean "
        f"of the {found}, times {found}/{channels}"
    )
