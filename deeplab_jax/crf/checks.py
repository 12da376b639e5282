"""Checks of what callers hand to the CRF: one sentence says what was expected and what came."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from deeplab_jax.choices import CRFNormalization
from deeplab_jax.crf.arrays import require_array
from deeplab_jax.crf.params import CRFParams
from deeplab_jax.types import Array, UserError

LARGEST_DIMENSION = 8


def require(condition: Any, sentence: str) -> None:
    """Raises a UserError of this sentence unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def is_traced(*values: Any) -> bool:
    """Whether any of these is inside `jit`, `grad` or `vmap`, where numbers are not known."""
    return any(isinstance(x, Tracer) for x in jax.tree.leaves(values))


def check_values(name: str, values: Array) -> None:
    """Refuses NaN and infinite floats, and "probabilities" that are not from 0 to 1.

    Of "energies" inf may rule labels out, but not all labels of a point. Traced arrays pass.
    """
    if is_traced(values) or 0 in values.shape or not jnp.issubdtype(values.dtype, jnp.floating):
        return
    energies = name.endswith("energies")
    with jax.ensure_compile_time_eval():  # a known array may be checked inside another's `jit`
        some = values.min(axis=-1) if energies else values
        least, most = float(some.min()), float(some.max())
    finite = math.isfinite(least) and math.isfinite(most)
    if energies:
        why = "inf rules a label out there, and some label must be possible"
        require(finite, f"{name} hold NaN or -inf, or only inf at some point; {why}")
        return
    require(finite, f"{name} hold NaN or infinite values; the CRF needs finite ones")
    require(
        name != "probabilities" or (least >= 0 and most <= 1.01),
        f"expected probabilities from 0 to 1, got values from {least:.3g} to {most:.3g}; "
        "logits? take the softmax",
    )


def check_photographs(
    image: Any,
    values: Any,
    params: Any,
    num_iterations: Any,
    normalization: Any,
    bands: Sequence[int] | None,
    *,
    what: str = "probabilities",
) -> tuple[Array, Array]:
    """The arrays, of the image its `bands`, if they and the options are as they should be.

    `values` are "probabilities" or "energies", which `what` says.
    """
    image = require_array("image", image)
    values = require_array("probs" if what == "probabilities" else "unary", values)
    channels = 3
    if bands is not None:
        found = image.shape[-1] if image.ndim else 0
        most = LARGEST_DIMENSION - 2  # without the two of the position
        different = 1 <= len(bands) <= most and len(set(bands)) == len(bands)
        require(
            different and all(0 <= band < found for band in bands),
            f"bands are 1 to {most} different numbers from 0 to {found - 1} for an image "
            f"{tuple(image.shape)}, got {tuple(bands)}",
        )
        image, channels = image[..., np.array(bands)], len(bands)
    check_shapes(image, values, channels, what)
    require(isinstance(params, CRFParams), f"params is a crf.CRFParams, got {params!r}")
    check_sigma("sigma_xy", params.sigma_xy, 2)
    check_sigma("sigma_rgb", params.sigma_rgb, channels)
    check_sigma("sigma_smoothness", params.sigma_smoothness, 2)
    for name in ("appearance_weight", "smoothness_weight"):
        weight = getattr(params, name)
        finite = is_traced(weight) or math.isfinite(weight)
        require(finite, f"{name} must be finite, got {weight!r}")
    check_iterations(num_iterations)
    check_normalization(normalization)
    check_values(what, values)
    return image, values


def check_shapes(image: Array, values: Array, channels: int, what: str) -> None:
    """Refuses what is no uint8 photograph with floats for at least two classes of each pixel."""
    got = f"got {tuple(image.shape)} and {tuple(values.shape)}"
    require(
        jnp.issubdtype(values.dtype, jnp.floating),
        f"expected {what} as floats, got {values.dtype} of shape {tuple(values.shape)}; "
        "labels? see crf.refine_labels",
    )
    same_size = values.ndim == image.ndim > 2 and values.shape[:-1] == image.shape[:-1]
    if same_size:
        got += "; name three of its bands, such as bands=(0, 1, 2), or see crf.kernel"
    elif image.shape == values.shape[:-1]:
        got += "; a grey image is np.stack([image] * 3, -1), or features for crf.kernel"
    require(
        same_size and image.shape[-1] == channels,
        f"expected an image [..., h, w, {channels}] and {what} [..., h, w, classes] of the same "
        f"height and width, {got}",
    )
    require(
        image.dtype == np.uint8,
        f"expected an RGB image of uint8, 0 to 255, got {image.dtype}; "
        "crf.kernel(crf.image_features(...)) takes float images",
    )
    require(
        values.shape[-1] > 1 and 0 not in values.shape,
        f"expected {what} of at least one pixel and at least 2 classes, got {tuple(values.shape)}; "
        "for one class pass np.stack([1 - probs, probs], axis=-1)",
    )


def check_features(features: Any, **per_point: Any) -> Array:
    """Refuses what no kernel can be made of; `per_point` has an entry a point or is None."""
    features = require_array("features", features)
    require(
        features.ndim > 1
        and jnp.issubdtype(features.dtype, jnp.floating)
        and 1 <= features.shape[-1] <= LARGEST_DIMENSION
        and 0 not in features.shape,
        "expected features [*points, d] of floats, values over their standard deviations, for at "
        f"least one point and of 1 to {LARGEST_DIMENSION} dimensions, "
        f"got {tuple(features.shape)} of {features.dtype}",
    )
    check_values("features", features)
    points = tuple(features.shape[:-1])
    for name, value in per_point.items():
        shape = points if value is None else np.shape(value)
        require(shape == points, f"{name} has an entry for each point, {points}, got {shape}")
    return features


def check_iterations(num_iterations: Any) -> None:
    """Refuses what is not a number of updates."""
    whole = isinstance(num_iterations, numbers.Integral) and not isinstance(num_iterations, bool)
    require(
        whole and int(num_iterations) >= 0,
        f"num_iterations is a whole number of at least 0, got {num_iterations!r}",
    )


def check_normalization(normalization: Any) -> None:
    """Refuses what is not the name of a normalization."""
    names = get_args(CRFNormalization)
    known = ", ".join(map(repr, names))
    require(normalization in names, f"normalization is one of {known}, got {normalization!r}")


def check_sigma(name: str, sigma: Any, number: int) -> None:
    """Refuses what is not a standard deviation above 0, or so many of them."""
    if is_traced(sigma):
        return
    try:
        values = np.asarray(sigma, np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{name} is a number above 0, got {sigma!r}") from None
    one_or_all = values.shape in ((), (number,))
    require(one_or_all, f"{name} is a number, or {number} numbers, got {sigma!r}")
    positive = np.isfinite(values).all() and (values > 0).all()
    require(positive, f"{name} must be above 0 and finite, got {sigma!r}")


def check_compatibility(penalty: Any, num_labels: int) -> None:
    """Refuses what is not a number, a vector `[c]` or a matrix `[c, c]`."""
    shape = np.shape(penalty)
    require(
        shape in ((), (num_labels,), (num_labels, num_labels)),
        f"a compatibility for {num_labels} labels is a number (Potts), {num_labels} numbers "
        f"(diagonal) or a {num_labels} x {num_labels} matrix, got shape {shape}",
    )
