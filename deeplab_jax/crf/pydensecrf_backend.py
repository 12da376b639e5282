"""The same inference by pydensecrf, the C++ extension everybody compares with."""

import numpy as np
from jaxtyping import Float, Float32, UInt8

from deeplab_jax.crf.params import CRFParams


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
        from pydensecrf import densecrf
    except ImportError as error:
        raise ImportError(
            "the CRF back end 'pydensecrf' needs the package pydensecrf2, "
            "which `pip install pydensecrf2` installs; backend='jax' needs nothing"
        ) from error
    h, w, c = unary.shape
    kind = {"symmetric": densecrf.NORMALIZE_SYMMETRIC, "per_pixel": densecrf.NORMALIZE_AFTER}
    crf = densecrf.DenseCRF2D(w, h, c)
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(-1, c).T, np.float32))
    crf.addPairwiseGaussian(
        sxy=float(params.sigma_smoothness),
        compat=float(params.smoothness_weight),
        normalization=kind[normalization],
    )
    crf.addPairwiseBilateral(
        sxy=float(params.sigma_xy),
        srgb=float(params.sigma_rgb),
        rgbim=np.ascontiguousarray(image),
        compat=float(params.appearance_weight),
        normalization=kind[normalization],
    )
    return np.array(crf.inference(num_iterations), np.float32).T.reshape(h, w, c)
