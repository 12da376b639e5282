"""The CRF in a process that was forked from one that had used JAX, by SciPy's sparse matrices.

The threads of XLA do not exist in such a process, as workers of a multiprocessing.Pool or of a
torch DataLoader are, and a program would wait for them for ever. The lattice is that of
`lattice_numpy`, so marginals are the same but for rounding; a process takes a core.
"""

import multiprocessing
import os
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jax._src import xla_bridge
from jaxtyping import Float
from scipy import sparse

from deeplab_jax.crf.lattice import Lattice, Rows
from deeplab_jax.types import UserError

# No public name tells whether JAX has started its threads; without this one every fork counts.
has_started = getattr(xla_bridge, "backends_are_initialized", lambda: True)

_had_started = False
_in_child = multiprocessing.parent_process() is not None and has_started()


def _before_fork() -> None:
    global _had_started
    _had_started = has_started()


def _after_fork() -> None:
    global _in_child
    _in_child = _had_started


if hasattr(os, "register_at_fork"):  # nothing forks on Windows
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def is_forked() -> bool:
    """Whether XLA's threads were lost when this process was forked."""
    return _in_child


def refuse_forked(what: str) -> None:
    """Refuses what needs XLA in a process that has lost its threads."""
    if is_forked():
        raise UserError(
            f"{what} needs XLA, which does not run in a process that was forked after JAX had "
            "started: start workers by multiprocessing.get_context('spawn'), or before JAX is used"
        )


class Smoother:
    """A lattice's filter as a product of sparse matrices."""

    def __init__(self, lattice: Lattice):
        def table(name):
            return np.asarray(getattr(lattice, name))

        size, n = lattice.vertex.shape
        v = int(table("num_vertices")) + 1
        index, start = table("vertex").T.reshape(-1), size * np.arange(n + 1)

        def points(weight):
            return sparse.csr_matrix((weight.T.reshape(-1), index, start), (n, v))

        self.splat = points(table("splat_weight")).T.tocsr()
        self.blurs = [blur_matrix(*np.asarray(pair)[:, :v]) for pair in lattice.neighbors]
        self.slice = points(table("slice_weight"))

    def __call__(self, values: Rows) -> Rows:
        values = self.splat @ values
        for blur in self.blurs:
            values = blur @ values
        return self.slice @ values


def blur_matrix(ahead: np.ndarray, behind: np.ndarray) -> sparse.csr_matrix:
    """Weights 1/2, 1, 1/2 of a vertex and its neighbors along an axis, of which 0 is none."""
    index = np.stack([np.arange(len(ahead), dtype=np.int32), ahead, behind], axis=1)
    there = index > 0
    weight = np.broadcast_to(np.array([1, 0.5, 0.5], np.float32), index.shape)
    start = np.append(0, there.sum(axis=1).cumsum())
    return sparse.csr_matrix((weight[there], index[there], start), (len(index), len(index)))


smoother = lru_cache(maxsize=4)(Smoother)


def smooth(lattice: Lattice, values: Rows) -> Rows:
    """`filtering.smooth`."""
    return smoother(lattice)(np.asarray(values))


def iterate(
    unary: Rows, rises: Callable[[Rows], Rows], num_iterations: int, start: Rows | None = None
) -> Rows:
    """`mean_field.iterate`, where `rises(marginals)` are what kernels add to the energies."""
    unary = np.asarray(unary)
    marginals = softmax(-unary) if start is None else start
    for _ in range(num_iterations):
        marginals = softmax(np.asarray(-unary - rises(marginals)))
    return marginals


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Softmax over the labels, in place."""
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits
