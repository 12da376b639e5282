"""Slow, obvious definitions that the CRF is tested against, in NumPy."""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np


def simplex(features: np.ndarray) -> np.ndarray:
    """Vertices `[d + 1, d, n]` around float32 features `[d, n]`, rounded after each operation."""
    d = len(features)
    deviation = float(np.float32(math.sqrt(2 / 3) * (d + 1)))
    total = np.zeros_like(features[0])
    rows = []
    for i in range(d, 0, -1):
        scaled = features[i - 1] * np.float32(deviation / math.sqrt(i * (i + 1)))
        rows.append(total - np.float32(i) * scaled)
        total = total + scaled
    elevated = np.stack([total, *rows[::-1]])
    cell = np.rint(elevated * np.float32(1 / (d + 1)))
    residual = elevated - cell * np.float32(d + 1)
    rank = np.zeros(elevated.shape, int)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            behind = residual[i] < residual[j]
            rank[i] += behind
            rank[j] += ~behind
    rank += cell.sum(0).astype(int)
    wrap = (rank < 0).astype(int) - (rank > d)
    rank, cell = rank + wrap * (d + 1), cell.astype(int) + wrap
    vertices = [cell * (d + 1) + k - (d + 1) * (rank > d - k) for k in range(d + 1)]
    return np.stack(vertices)[:, :d]


def dense_kernel(features: np.ndarray) -> np.ndarray:
    """exp(-|f_i - f_j|^2 / 2) of every pair of n features `[d, n]`, in float64."""
    difference = features[:, :, None].astype(float) - features[:, None, :]
    return np.exp(-0.5 * (difference**2).sum(0))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def assert_same_labels(ours, theirs):
    """Wherever the best two are further apart than rounding."""
    best = np.sort(theirs, axis=-1)
    clear = best[..., -1] - best[..., -2] > 2e-5
    np.testing.assert_array_equal(ours.argmax(-1)[clear], theirs.argmax(-1)[clear])


def assert_same_marginals(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert_same_labels(ours, theirs)


FLAGS = os.environ.get("XLA_FLAGS", "")
NEWER_LOOPS = {"xla_cpu_use_fusion_emitters": True} if "emitters" in FLAGS else {}
"""The older ones, where conftest.py asks for them, take minutes to compile gradients."""


def assert_derivatives(loss, point, rtol):
    """Each partial derivative along a random direction against central differences."""
    gradient = jax.grad(loss, argnums=tuple(range(len(point))))
    gradients = jax.jit(gradient, compiler_options=NEWER_LOOPS)(*point)
    run = jax.jit(loss, compiler_options=NEWER_LOOPS)
    rng = np.random.default_rng(9)
    for i, gradient in enumerate(gradients):
        direction = jnp.asarray(rng.normal(size=np.shape(point[i])))
        step = 1e-6 * direction
        ahead, behind = list(point), list(point)
        ahead[i], behind[i] = point[i] + step, point[i] - step
        expected = (run(*ahead) - run(*behind)) / 2e-6
        assert abs(expected) > 1e-4
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=rtol)
