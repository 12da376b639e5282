# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Segment a photograph and refine it, step by step
#
# The run of `python experiments/train_voc.py quickstart` segments a drawn scene, and the CRF
# refines the result. Set `RUN` to another work folder and `PHOTOGRAPH` to a file to see your own.
# Where there is no such run, a blurred and partly wrong version of the scene's labels stands in
# for the network's answer, so that the CRF has something to do.

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from scipy import ndimage

from deeplab_jax import crf, figures, load, metrics, photographs, predict, visualization
from deeplab_jax.data import scenes
from deeplab_jax.types import IGNORE_LABEL

RUN = Path("../../runs/quickstart")
PHOTOGRAPH = None

# %% [markdown]
# ## The network's answer
#
# `probs` holds the probability of each class at each pixel. It is enlarged from a map of stride
# 8, so its borders are soft.

# %%
drawn, truth = scenes.draw_scene(np.random.default_rng(3))
image = drawn if PHOTOGRAPH is None else photographs.read(PHOTOGRAPH)


def unsure(labels, num_classes, rng):
    """Probabilities from true labels: one block in eight wrong, then blurred over 8 pixels."""
    coarse = np.where(labels == IGNORE_LABEL, 0, labels)[::8, ::8].copy()
    wrong = rng.random(coarse.shape) < 1 / 8
    coarse[wrong] = rng.integers(0, num_classes, wrong.sum())
    votes = np.eye(num_classes)[coarse].repeat(8, 0).repeat(8, 1)
    soft = ndimage.gaussian_filter(votes, (5, 5, 0)) + 0.02
    return (soft / soft.sum(-1, keepdims=True)).astype(np.float32)


if RUN.exists():
    model, variables, meta = load(RUN)
    class_names, colors = meta["class_names"], meta["class_colors"]
    probs = predict(model, variables, image)
else:
    print(f"{RUN} does not exist: blurred labels stand in for the network")
    class_names, colors = scenes.CLASS_NAMES, None
    probs = unsure(truth, len(class_names), np.random.default_rng(0))
colors = visualization.palette(class_names, colors)
print(probs.shape, probs.dtype)

# %%
labels = probs.argmax(-1)
fig, axes = plt.subplots(1, 3, figsize=(13, 5), layout="constrained")
axes[0].imshow(image)
axes[0].set_title("photograph")
axes[1].imshow(visualization.overlay(image, labels, colors=colors))
axes[1].set_title("network" if RUN.exists() else "labels, blurred and partly wrong")
confidence = axes[2].imshow(probs.max(-1), cmap="gray", vmin=0, vmax=1)
axes[2].set_title("probability of the winning class")
fig.colorbar(confidence, ax=axes[2], label="probability", shrink=0.7)
for ax in axes:
    ax.axis("off")

# %%
figures.picture(
    visualization.legend(range(len(class_names)), class_names, width=800, colors=colors)
)

# %% [markdown]
# ## The CRF, iteration by iteration
#
# Every pixel is tied to every other by two kernels (Equation 3): pixels that are near each other
# *and* alike in colour should agree (appearance), and so should close neighbours of any colour
# (smoothness). Mean field repeats three steps: pass messages along both kernels, add them to the
# network's evidence, normalise. After 0 iterations the marginals are the network's probabilities;
# the paper takes ten iterations.

# %%
params = crf.CRFParams()
print(params)
ITERATIONS = (0, 1, 2, 5, 10)
marginals = {n: crf.refine(image, probs, params, num_iterations=n) for n in ITERATIONS}
np.testing.assert_allclose(marginals[0], probs, atol=1e-5)

# %%
shown = np.bincount(labels.ravel(), minlength=len(class_names))[1:].argmax() + 1
fig, axes = plt.subplots(2, len(ITERATIONS), figsize=(15, 6.4), layout="constrained")
for column, (n, q) in zip(axes.T, marginals.items(), strict=True):
    column[0].imshow(visualization.overlay(image, q.argmax(-1), colors=colors))
    column[0].set_title(f"{n} iterations" if n != 1 else "1 iteration")
    drawn_marginal = column[1].imshow(q[..., shown], cmap="gray", vmin=0, vmax=1)
    column[1].set_title(f"marginal of {class_names[shown]}")
fig.colorbar(drawn_marginal, ax=axes[1], label="probability", shrink=0.8)
for ax in axes.ravel():
    ax.axis("off")

# %% [markdown]
# How much still moves from step to step:

# %%
for before, after in zip(ITERATIONS, ITERATIONS[1:], strict=False):
    moved = (marginals[before].argmax(-1) != marginals[after].argmax(-1)).mean()
    print(f"{before:2d} -> {after:2d} iterations: {moved:.2%} of the pixels change their class")

# %% [markdown]
# ## Is it better?
#
# The truth beside the network and the CRF. Wrong pixels are red in the lower row; white pixels
# have no label and do not count. There is no truth, and no picture, for a photograph of your own.

# %%
if PHOTOGRAPH is None:
    found = {"network": labels, "after the CRF": marginals[10].argmax(-1)}
    fig, axes = plt.subplots(2, 3, figsize=(9, 6.2), layout="constrained")
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("photograph")
    axes[1, 0].imshow(visualization.colorize(truth, colors))
    axes[1, 0].set_title("truth")
    for column, (name, answer) in zip(axes.T[1:], found.items(), strict=True):
        confusion = metrics.confusion_matrix(truth, answer, num_classes=len(class_names))
        column[0].imshow(visualization.colorize(answer, colors))
        column[0].set_title(f"{name}: mean IoU {metrics.mean_iou(confusion):.3f}")
        column[1].imshow(visualization.error_map(image, answer, truth))
        column[1].set_title("wrong pixels")
    for ax in axes.ravel():
        ax.axis("off")

# %% [markdown]
# ## What the parameters do
#
# With a wide `sigma_rgb` colours that differ count as alike, and classes flow over edges; a
# narrow one leaves speckles. `experiments/search_crf.py` finds good values for a data set.

# %%
settings = {f"sigma_rgb {s}": crf.CRFParams(sigma_rgb=s) for s in (1.0, 3.0, 10.0, 40.0)}
fig, axes = plt.subplots(1, len(settings), figsize=(15, 4), layout="constrained")
for ax, (title, chosen) in zip(axes, settings.items(), strict=True):
    refined = crf.refine(image, probs, chosen).argmax(-1)
    ax.imshow(visualization.overlay(image, refined, colors=colors))
    ax.set_title(title)
    ax.axis("off")

# %% [markdown]
# ## The CRF inside your own `jit`, with gradients
#
# `crf.marginals` takes energies, -log of probabilities. Gradients reach the energies and all
# parameters. `crf.refine` chooses the sizes of its tables from the photograph; inside a `jit` they
# are the largest that can occur, or what `vertex_bound` and `row_bound` say, and a photograph that
# exceeds these gives NaN. Here gradient descent finds the two weights for one small drawing whose
# truth is known.

# %%
small, small_truth = image[::2, ::2], truth[::2, ::2]
small_energies = jnp.asarray(crf.energies(probs[::2, ::2]))
if PHOTOGRAPH is not None:
    small_truth = labels[::2, ::2]  # without a truth: what the network said
counted = small_truth != IGNORE_LABEL
wanted = np.where(counted, small_truth, 0)


@jax.jit
def loss(weights):
    params = crf.CRFParams(appearance_weight=weights[0], smoothness_weight=weights[1])
    q = crf.marginals(small, small_energies, params, num_iterations=5)
    chosen = jnp.take_along_axis(q, wanted[..., None], -1)[..., 0]
    return -jnp.mean(jnp.log(chosen + 1e-6), where=counted)


value_and_gradient = jax.jit(jax.value_and_grad(loss))
weights = jnp.array([1.0, 1.0])
for step in range(21):
    value, gradient = value_and_gradient(weights)
    if step % 5 == 0:
        print(f"step {step:2d}: loss {value:.4f}, weights {weights[0]:.2f} and {weights[1]:.2f}")
    weights = jnp.maximum(weights - 2.0 * gradient, 0.0)
