"""The same inference without our lattice: the dense kernel pair by pair, and pydensecrf in C++."""

import importlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, UInt8

from deeplab_jax.choices import CRFNormalization as Normalization
from deeplab_jax.crf.features import appearance_features, as_numbers, positions
from deeplab_jax.crf.filtering import factors
from deeplab_jax.crf.forked import is_forked, refuse_forked
from deeplab_jax.crf.kernels import energies
from deeplab_jax.crf.lattice import Rows
from deeplab_jax.crf.params import CRFParams

TILE = 1024  # pixels of a tile; a tile of the kernel has this many squared entries


def exact_smooth(features: Float32[Array, "d n"], values: Float[Array, "n c"]) -> Array:
    """sum_j exp(-|f_i - f_j|^2 / 2) values_j."""
    n, c = values.shape
    centred = features - features.mean(axis=1, keepdims=True)
    tile = min(TILE, n)
    padding = -n % tile
    rows = jnp.pad(centred.T, ((0, padding), (0, 0))).reshape(-1, tile, len(features))

    def one_tile(rows):
        kernel = jnp.exp(-0.5 * ((rows[:, None] - centred.T[None]) ** 2).sum(-1))
        return jnp.matmul(kernel, values, precision="highest")

    return lax.map(one_tile, rows).reshape(-1, c)[:n]


@partial(jax.jit, static_argnames=("num_iterations", "normalization"))
def exact_mean_field(
    unary: Rows, features: Sequence, weights: Sequence, *, num_iterations: int, normalization: str
) -> Rows:
    """Mean field with the dense kernels of these features `[d, n]` and Potts weights."""
    ones = jnp.ones((len(unary), 1), unary.dtype)
    around = [factors(exact_smooth(f, ones), normalization) for f in features]

    def update(_, marginals):
        messages = [
            weight * after * exact_smooth(f, before * marginals)
            for f, weight, (before, after) in zip(features, weights, around, strict=True)
        ]
        return jax.nn.softmax(sum(messages) - unary)

    return lax.fori_loop(0, num_iterations, update, jax.nn.softmax(-unary))


def exact_marginals(
    image: UInt8[Any, "h w channels"], probs: Float[Any, "h w c"], params: CRFParams, **options
) -> Float32[Array, "h w c"]:
    """Marginals of one photograph with the dense kernels, which the lattice approximates."""
    refuse_forked("backend='exact'")
    image = jnp.asarray(image)[None]
    features = [
        jnp.asarray(appearance_features(image, params, jnp)),
        jnp.asarray(positions(image.shape[:3], params.sigma_smoothness, jnp)),
    ]
    unary = energies(jnp.asarray(probs, jnp.float32)).reshape(-1, probs.shape[-1])
    weights = [params.appearance_weight, params.smoothness_weight]
    return exact_mean_field(unary, features, weights, **options).reshape(probs.shape)


def pydensecrf_marginals(
    image: UInt8[Any, "h w 3"],
    probs: Float[Any, "h w c"],
    params: CRFParams,
    *,
    num_iterations: int,
    normalization: Normalization,
) -> Float32[np.ndarray, "h w c"]:
    """Marginals of one photograph by pydensecrf, the C++ extension everybody compares with."""
    try:
        densecrf = importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise ImportError(
            "the CRF back end 'pydensecrf' needs the package pydensecrf2, "
            "which `pip install pydensecrf2` installs; backend='jax' needs nothing"
        ) from error
    h, w, c = probs.shape
    names = {"none": "NO_NORMALIZATION", "per_pixel": "NORMALIZE_AFTER"}
    kind = getattr(densecrf, names.get(normalization, f"NORMALIZE_{normalization.upper()}"))
    xp = np if is_forked() else jnp  # the bits of backend "jax"
    unary = np.asarray(energies(xp.asarray(probs, np.float32)))
    crf = densecrf.DenseCRF2D(w, h, c)  # takes no read-only arrays
    crf.setUnaryEnergy(np.array(unary.reshape(-1, c).T, order="C"))
    compat = float(params.smoothness_weight)
    crf.addPairwiseGaussian(as_numbers(params.sigma_smoothness), compat, normalization=kind)
    reach, colors = as_numbers(params.sigma_xy), as_numbers(params.sigma_rgb)
    compat = float(params.appearance_weight)
    crf.addPairwiseBilateral(reach, colors, np.array(image, order="C"), compat, normalization=kind)
    return np.array(crf.inference(num_iterations), np.float32).T.reshape(h, w, c)
