"""Checks of what callers hand to the CRF: one sentence says what was expected and what came."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from deeplab_jax.crf.params import CRFParams
from deeplab_jax.types import Array, UserError

NORMALIZATIONS = ("symmetric", "per_pixel", "after", "before", "none")
LARGEST_DIMENSION = 8


def is_traced(*values: Any) -> bool:
    """Whether any of these is inside `jit`, `grad` or `vmap`, where numbers are not known."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(values))


def require_array(name: str, value: Any) -> Array:
    """`value` if it is a NumPy or JAX array."""
    if isinstance(value, np.ndarray | jax.Array):
        return value
    kind = type(value)
    cure = f"pass np.asarray({name})"
    if kind.__module__.split(".")[0] == "torch":
        cure = f"pass {name}.detach().cpu().numpy(), with the channels or classes last"
    raise UserError(
        f"{name} is a {kind.__module__}.{kind.__qualname__}; expected a NumPy or JAX array: {cure}"
    )


def require_finite(name: str, value: Array) -> None:
    """Refuses NaN and infinite values; traced arrays pass."""
    if is_traced(value) or not jnp.issubdtype(value.dtype, jnp.floating):
        return
    xp = jnp if isinstance(value, jax.Array) else np
    with jax.ensure_compile_time_eval():  # a known array may be checked inside another's `jit`
        finite = bool(xp.isfinite(value).all())
    if not finite:
        raise UserError(f"{name} hold NaN or infinite values; the CRF needs finite ones")


def check_image(image: Array, leading: Sequence[int], what: str, *, channels: int = 3) -> None:
    """Refuses what is not uint8 `[*leading, channels]`; `what` names the other array's shape."""
    if image.ndim < 2 or image.shape[-1] != channels or tuple(image.shape[:-1]) != tuple(leading):
        raise UserError(
            f"expected an image [..., h, w, {channels}] and {what} of the same height and width, "
            f"got {tuple(image.shape)} and {tuple(leading)}; crf.kernel takes other images"
        )
    if image.dtype != np.uint8:
        raise UserError(
            f"expected an RGB image of uint8, 0 to 255, got {image.dtype}; "
            "crf.kernel(crf.image_features(...)) takes float images"
        )


def check_bands(image: Array, bands: Sequence[int]) -> None:
    """Refuses bands that the image does not have, or more than kernels have dimensions for."""
    found = image.shape[-1] if image.ndim else 0
    most = LARGEST_DIMENSION - 2  # without the two of the position
    if not 1 <= len(bands) <= most or len(set(bands)) < len(bands):
        raise UserError(f"bands are 1 to {most} different numbers, got {tuple(bands)}")
    if not all(0 <= band < found for band in bands):
        raise UserError(
            f"bands are numbers from 0 to {found - 1} for an image {tuple(image.shape)}, "
            f"got {tuple(bands)}"
        )


def check_probs(image: Array, probs: Array, *, channels: int = 3) -> None:
    """Refuses what is not a uint8 photograph with probabilities of the same size."""
    same_size = probs.ndim == image.ndim and probs.shape[:-1] == image.shape[:-1]
    if image.shape[-1] != channels or not same_size:
        raise UserError(
            f"expected an image [..., h, w, {channels}] and probabilities [..., h, w, classes] of "
            f"the same height and width, got {tuple(image.shape)} and {tuple(probs.shape)}"
            + ("; name three of its bands, such as bands=(0, 1, 2)" if same_size else "")
        )
    check_image(image, probs.shape[:-1], "probabilities", channels=channels)
    if 0 in probs.shape:
        raise UserError(f"expected at least one pixel, got probabilities {tuple(probs.shape)}")
    if probs.shape[-1] < 2:
        raise UserError(
            f"expected probabilities of at least 2 classes, got {tuple(probs.shape)}; for one "
            "class pass np.stack([1 - probs, probs], axis=-1)"
        )
    if not jnp.issubdtype(probs.dtype, jnp.floating):
        raise UserError(
            f"expected probabilities as floats, got {probs.dtype}; labels? see crf.refine_labels"
        )
    if is_traced(probs):
        return
    with jax.ensure_compile_time_eval():  # a known array may be checked inside another's `jit`
        least, most = float(probs.min()), float(probs.max())
    if not (math.isfinite(least) and math.isfinite(most)):
        raise UserError("probabilities hold NaN or infinite values; the CRF needs finite ones")
    if least < 0 or most > 1.01:
        raise UserError(
            f"expected probabilities from 0 to 1, got values from {least:.3g} to {most:.3g}; "
            "logits? take the softmax"
        )


def check_features(features: Any, **per_point: Any) -> Array:
    """Refuses what no kernel can be made of; `per_point` has an entry a point or is None."""
    features = require_array("features", features)
    if features.ndim < 2 or not jnp.issubdtype(features.dtype, jnp.floating):
        raise UserError(
            "expected features [*points, d] of floats, values over their standard deviations, "
            f"got {tuple(features.shape)} of {features.dtype}"
        )
    if not 1 <= features.shape[-1] <= LARGEST_DIMENSION:
        raise UserError(
            f"features have 1 to {LARGEST_DIMENSION} dimensions on their last axis, "
            f"got {tuple(features.shape)}"
        )
    if 0 in features.shape:
        raise UserError(f"expected at least one point, got features {tuple(features.shape)}")
    require_finite("features", features)
    for name, value in per_point.items():
        if value is not None and np.shape(value) != features.shape[:-1]:
            raise UserError(
                f"{name} has an entry for each point, {tuple(features.shape[:-1])}, "
                f"got {np.shape(value)}"
            )
    return features


def check_iterations(num_iterations: Any) -> None:
    """Refuses what is not a number of updates."""
    whole = isinstance(num_iterations, numbers.Integral) and not isinstance(num_iterations, bool)
    if not whole or num_iterations < 0:
        raise UserError(f"num_iterations is a whole number of at least 0, got {num_iterations!r}")


def check_normalization(normalization: Any) -> None:
    """Refuses what is not the name of a normalization."""
    if normalization not in NORMALIZATIONS:
        names = ", ".join(repr(name) for name in NORMALIZATIONS)
        raise UserError(f"normalization is one of {names}, got {normalization!r}")


def check_sigma(name: str, sigma: Any, allowed: Sequence[int]) -> None:
    """Refuses what is not a standard deviation above 0, or one for each of `allowed` many."""
    if is_traced(sigma):
        return
    try:
        values = np.asarray(sigma, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} is a number above 0, got {sigma!r}") from None
    if values.ndim > 1 or (values.ndim == 1 and len(values) not in allowed):
        counts = " or ".join(str(n) for n in allowed)
        raise UserError(f"{name} is a number, or {counts} numbers, got {sigma!r}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise UserError(f"{name} must be above 0 and finite, got {sigma!r}")


def check_params(params: Any, *, channels: int = 3) -> None:
    """Refuses parameters of a CRF over photographs that make no sense."""
    if not isinstance(params, CRFParams):
        raise UserError(f"params is a crf.CRFParams, got {params!r}")
    check_sigma("sigma_xy", params.sigma_xy, (2,))
    check_sigma("sigma_rgb", params.sigma_rgb, (channels,))
    check_sigma("sigma_smoothness", params.sigma_smoothness, (2,))
    for name in ("appearance_weight", "smoothness_weight"):
        weight = getattr(params, name)
        if not is_traced(weight) and not math.isfinite(weight):
            raise UserError(f"{name} must be finite, got {weight!r}")


def check_compatibility(penalty: Any, num_labels: int) -> None:
    """Refuses what is not a number, a vector `[c]` or a matrix `[c, c]`."""
    shape = np.shape(penalty)
    if shape not in ((), (num_labels,), (num_labels, num_labels)):
        raise UserError(
            f"a compatibility for {num_labels} labels is a number (Potts), {num_labels} numbers "
            f"(diagonal) or a {num_labels} x {num_labels} matrix, got shape {shape}"
        )
