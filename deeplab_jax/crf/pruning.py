"""Label pruning: rare labels are one label during inference, which saves time.

A label that is improbable at every pixel takes as much time as any other and changes little.
`merge_rare` adds all such labels up to one; `split_rare` hands its marginal back to them in
proportion to their probabilities.
"""

import numpy as np
from jaxtyping import Float, Integer


def frequent_labels(
    probs: Float[np.ndarray, "*pixels c"], threshold: float
) -> Integer[np.ndarray, " kept"]:
    """Labels whose probability reaches `threshold` at some pixel.

    >>> frequent_labels(np.array([[0.6, 0.01, 0.39], [0.9, 0.02, 0.08]]), 0.05).tolist()
    [0, 2]
    """
    return np.flatnonzero(probs.max(axis=tuple(range(probs.ndim - 1))) >= threshold)


def rare_labels(num_labels: int, kept: Integer[np.ndarray, " kept"]) -> np.ndarray:
    """The labels that are not kept."""
    return np.setdiff1d(np.arange(num_labels), kept)


def merge_rare(
    probs: Float[np.ndarray, "*pixels c"], kept: Integer[np.ndarray, " kept"]
) -> Float[np.ndarray, "*pixels kept+1"]:
    """Probabilities of the kept labels, and last the sum of all others."""
    rest = probs[..., rare_labels(probs.shape[-1], kept)].sum(-1, keepdims=True)
    return np.concatenate([probs[..., kept], rest], axis=-1)


def split_rare(
    marginals: Float[np.ndarray, "*pixels merged"],
    probs: Float[np.ndarray, "*pixels c"],
    kept: Integer[np.ndarray, " kept"],
) -> Float[np.ndarray, "*pixels c"]:
    """Marginals of all labels from those of the merged ones."""
    rare = rare_labels(probs.shape[-1], kept)
    rest = np.maximum(probs[..., rare].sum(-1, keepdims=True), np.finfo(np.float32).tiny)
    result = np.zeros(probs.shape, marginals.dtype)
    result[..., kept] = marginals[..., :-1]
    result[..., rare] = marginals[..., -1:] * probs[..., rare] / rest
    return result
