"""The same inference by pydensecrf, the C++ extension everybody compares with."""

import importlib
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from deeplab_jax.crf.params import CRFParams


def as_numbers(sigma: Any) -> float | tuple[float, ...]:
    """A standard deviation as a Python number, several as a tuple."""
    values = np.asarray(sigma, float)
    return float(values) if values.ndim == 0 else tuple(values.tolist())


def pydensecrf_marginals(
    image: UInt8[np.ndarray, "h w 3"],
    unary: Float[np.ndarray, "h w c"],
    params: CRFParams,
    *,
    num_iterations: int,
    normalization: str,
) -> Float32[np.ndarray, "h w c"]:
    """Marginals of one photograph given its energies."""
    try:
        densecrf = importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise ImportError(
            "the CRF back end 'pydensecrf' needs the package pydensecrf2, "
            "which `pip install pydensecrf2` installs; backend='jax' needs nothing"
        ) from error
    h, w, c = unary.shape
    kind = {
        "symmetric": densecrf.NORMALIZE_SYMMETRIC,
        "per_pixel": densecrf.NORMALIZE_AFTER,
        "after": densecrf.NORMALIZE_AFTER,
        "before": densecrf.NORMALIZE_BEFORE,
        "none": densecrf.NO_NORMALIZATION,
    }
    crf = densecrf.DenseCRF2D(w, h, c)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(-1, c).T, np.float32))
    crf.addPairwiseGaussian(
        sxy=as_numbers(params.sigma_smoothness),
        compat=float(params.smoothness_weight),
        normalization=kind[normalization],
    )
    crf.addPairwiseBilateral(
        sxy=as_numbers(params.sigma_xy),
        srgb=as_numbers(params.sigma_rgb),
        rgbim=np.ascontiguousarray(image),
        compat=float(params.appearance_weight),
        normalization=kind[normalization],
    )
    return np.array(crf.inference(num_iterations), np.float32).T.reshape(h, w, c)
