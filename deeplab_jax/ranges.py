"""Values of any range as 8 bits: one rule for files and for arrays."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Num, UInt8

from deeplab_jax.types import UserError

ValueRange: TypeAlias = Sequence[float | int]
"""The values that become 0 and 255; or such a pair for each channel, one after the other."""


def to_8_bits(values: Num[np.ndarray, "..."], value_range: ValueRange) -> UInt8[np.ndarray, "..."]:
    """0 and 255 at the ends of the range, proportional between them, clipped beyond; NaN gives 0.

    A range of two numbers holds for all values; one with a pair for each channel needs values
    `[h, w, channels]`.

    Raises:
      UserError: the range is of another length, or a lower end is not below the upper one.

    >>> to_8_bits(np.array([0, 100, 600, 1100, 4000]), (100, 1100)).tolist()
    [0, 0, 128, 255, 255]
    >>> to_8_bits(np.array([[[60, 60]]]), (0, 100, 50, 150)).tolist()
    [[[153, 26]]]
    """
    check_range(value_range, values.shape[-1] if values.ndim > 2 else 1)
    low, high = np.reshape(np.asarray(value_range, np.float64), (-1, 2)).T
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)


def check_range(value_range: ValueRange, channels: int) -> None:
    """Refuses what is neither one pair of numbers nor a pair for each channel.

    Raises:
      UserError
    """
    if len(value_range) not in (2, 2 * channels):
        raise UserError(
            f"the range has {len(value_range)} numbers; give LOW HIGH, or such a pair for each of "
            f"the {channels} channels."
        )
    for low, high in zip(value_range[::2], value_range[1::2], strict=True):
        if not low < high:
            raise UserError(f"the range {low:g} {high:g} must be two numbers, the lower one first.")
