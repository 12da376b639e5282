# %% [markdown]
# # Atrous convolution
#
# What the rate of a convolution does, in one and two dimensions, shown with the operations that the
# networks of this package are made of (Section 3.1 of the paper). Nothing is downloaded, and the
# notebook runs in less than a minute.

# %%
# %matplotlib inline
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from deeplab_jax import build, figures, load, receptive_field, train
from deeplab_jax.models.deeplab import make_inputs
from deeplab_jax.ops.convolution import atrous_conv
from deeplab_jax.ops.resize import resize_bilinear

# %% [markdown]
# Where rates stand in the network: in the last stages of the trunk, and in the branches of ASPP.

# %%
stages = [("conv1", 4, 1), ("res2", 4, 1), ("res3", 8, 1), ("res4", 8, 2), ("res5", 8, 4)]
figures.network(stages, (6, 12, 18, 24), scales=(1.0, 0.75, 0.5))

# %% [markdown]
# ## One dimension
#
# $y[i] = \sum_k x[i + r k]\, w[k]$: the taps of the kernel stand $r$ samples apart. The kernel has
# three weights whatever the rate, and sees $2r + 1$ samples.

# %%
signal = np.sin(np.arange(64) / 5) + (np.arange(64) > 40)
taps = np.zeros((3, 3))
taps[1] = -1, 0, 1  # the difference of two samples that stand 2r apart


def filtered(picture, kernel, rate):
    """`atrous_conv` works on pictures [b, h, w, channels]; a signal is one of a single row."""
    pixels = jnp.asarray(picture, jnp.float32)[None, ..., None]
    weights = jnp.asarray(kernel, jnp.float32)[..., None, None]
    return np.asarray(atrous_conv(pixels, weights, rate=rate))[0, ..., 0]


def convolve(signal, rate):
    return filtered(signal[None], taps, rate)[0]


fig, axes = plt.subplots(1, 3, figsize=(13, 3), sharey=True, layout="constrained")
axes[0].set_ylabel("value")
for ax, rate in zip(axes, (1, 4, 12), strict=True):
    ax.plot(signal, color="gray", label="signal")
    ax.plot(convolve(signal, rate), "o-", markersize=3, color="#1b3a6b", label="response")
    ax.set(title=f"rate {rate}: {2 * rate + 1} samples wide", xlabel="sample")
    ax.legend()

# %% [markdown]
# The rate is the distance at which the filter compares: at rate 1 it answers to the step at
# sample 40 above all, at rate 12 to the slow wave as well. At both ends the taps reach beyond the
# signal and read zeros.
#
# The paper has another way to compute this: split the signal into $r$ interleaved ones, convolve
# each at rate 1, and interleave the results. Both ways give the same numbers.

# %%
rate = 4
apart = np.zeros_like(signal)
for phase in range(rate):
    apart[phase::rate] = convolve(signal[phase::rate], 1)
np.testing.assert_allclose(apart, convolve(signal, rate), atol=1e-6)

# %% [markdown]
# ## Two dimensions: why not pool instead?
#
# A classifier shrinks its map by 32. To have scores at every eighth pixel one can remove the
# strides of the last stages, but then their kernels see a smaller part of the photograph than
# they were trained for. A rate gives them their old reach back. Below: an edge filter on every
# second pixel, its response enlarged, and the same filter at rate 2 on all pixels (Figure 3 of
# the paper). Both compare pixels that are four apart; the second does so at every pixel.

# %%
side = 96
rows, columns = np.mgrid[:side, :side]
picture = ((np.hypot(rows - 48, columns - 40) < 30) ^ (columns // 8 % 2 == 0)).astype(np.float32)
edge = np.zeros((3, 3))
edge[:, 0], edge[:, 2] = -1, 1

small = filtered(picture[::2, ::2], edge, 1)
enlarged = resize_bilinear(small[None, ..., None], (side, side), alignment="half_pixel")
pictures = {
    "picture": picture,
    "shrunk, filtered, enlarged": np.asarray(enlarged)[0, ..., 0],
    "filtered at rate 2": filtered(picture, edge, 2),
}
fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
for ax, (title, values) in zip(axes, pictures.items(), strict=True):
    ax.imshow(values, cmap="gray")
    ax.set(title=title, xlabel="pixel", ylabel="pixel")

# %% [markdown]
# ## Field of view against cost
#
# A larger kernel sees further, and pays for it with weights and multiplications. A rate is free:
# the taps only move.

# %%
channels, classes = 2048, 21
for kernel, rate in ((3, 1), (7, 1), (7, 4), (3, 4), (3, 12), (3, 24)):
    span = (kernel - 1) * rate + 1
    weights = kernel * kernel * channels * classes
    print(f"{kernel}x{kernel} at rate {rate:2d}: {span:2d} scores wide, {weights:>9,} weights")

# %% [markdown]
# The paper's Table 1 makes this point with four VGG-16 networks. Their sizes follow from the
# shapes of their parameters; no weights are drawn. The 3x3 at rate 12, LargeFOV, sees as far as
# the 7x7 at rate 4 with less than a sixth of the parameters.

# %%
fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.set(xlabel="span of the head's kernel (pixels of the photograph)", xlim=(0, 240))
ax.set(ylabel="parameters (millions)", ylim=(0, 150))
ax.grid(alpha=0.3)
for kernel, rate, width in ((7, 4, 4096), (4, 4, 4096), (4, 8, 4096), (3, 12, 1024)):
    network = build(
        num_classes=classes, backbone="vgg", stage_sizes=(2, 2, 3, 3, 3), norm="none",
        aspp_rates=(rate,), head_kernel_size=kernel, head_width=width, scales=(1.0,),
    )  # fmt: skip
    leaves = jax.tree.leaves(train.variable_shapes(network)["params"])
    millions = sum(leaf.size for leaf in leaves) / 1e6
    place = 8 * ((kernel - 1) * rate + 1), millions
    ax.plot(*place, "o", color="#1b3a6b", markersize=8)
    label = f"{kernel}x{kernel} at rate {rate}: {millions:.1f} million  "
    ax.annotate(label, place, ha="right", va="center")

# %% [markdown]
# ## Several rates at once
#
# Atrous spatial pyramid pooling adds up branches with different rates. The marks are the places in
# the last feature map (eight pixels apart) that the score in the middle reads.

# %%
rate_sets = {"LargeFOV": (12,), "ASPP-S": (2, 4, 8, 12), "ASPP-L": (6, 12, 18, 24)}
fig, axes = plt.subplots(1, 3, figsize=(13, 4.4), sharex=True, sharey=True, layout="constrained")
axes[0].set_ylabel("row of the feature map")
for ax, (name, rates) in zip(axes, rate_sets.items(), strict=True):
    for rate, (color, marker) in zip(rates, figures.LINES, strict=False):
        steps = rate * np.array([-1, 0, 1])
        ax.plot(
            *map(np.ravel, np.meshgrid(steps, steps)), marker, color=color, label=f"rate {rate}"
        )
    ax.set(title=name, xlabel="column of the feature map", aspect="equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)

# %% [markdown]
# ## What a score looks at
#
# The gradient of the middle score of the winning class says how much each pixel matters: the
# effective receptive field (Luo et al., arXiv 1701.04128). Residual blocks start as the identity,
# so before training a score sees little more than the taps of the head, eight pixels a step. The
# dashed square is the theoretical field, which is larger by what the trunk can add; the line holds
# 90% of the gradient.
#
# To look at networks that you have trained, put their work folders into `RUNS` and your photographs
# into `PHOTOGRAPHS`; the middle of each is taken, on the mean colour where it is smaller.

# %%
RUNS, PHOTOGRAPHS = [], []
SIDE = 417  # 16k + 1: a score stands on the pixel in the middle


@partial(jax.jit, static_argnames="model")
def gradient(model, variables, image):
    """Sum over colours of |d score / d pixel|."""

    def score(inputs):
        logits = model.apply(variables, inputs[None])[0]
        return logits[logits.shape[0] // 2, logits.shape[1] // 2].max()

    return jnp.abs(jax.grad(score)(make_inputs(image, model.mean_bgr))).sum(-1)


def middle(image):
    """SIDE x SIDE pixels around the middle of a photograph, on its mean colour."""
    color = tuple(np.rint(np.mean(image, (0, 1))).astype(int).tolist())
    page = Image.new("RGB", (SIDE, SIDE), color)
    page.paste(image, tuple(int((SIDE - n) / 2) for n in image.size))
    return np.asarray(page)


def side_holding(share, field):
    """Side of the smallest centred square that holds this share of a field's sum."""
    reach = np.maximum(*np.abs(np.indices(field.shape) - len(field) // 2)).ravel()
    held = np.cumsum(np.bincount(reach, weights=field.ravel()))
    return int(2 * np.searchsorted(held, share * held[-1] * (1 - 1e-12)) + 1)


networks = {Path(run).name: load(run)[:2] for run in RUNS}
images = [middle(Image.open(path).convert("RGB")) for path in PHOTOGRAPHS]
if not RUNS:
    images = [np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)]
    for name, rates in rate_sets.items():
        model = build(
            num_classes=6, stage_sizes=(1, 1, 1, 1), width=4, norm="trained", aspp_rates=rates,
            scales=(1.0,),
        )  # fmt: skip
        networks[f"{name}, untrained"] = model, train.init_variables(model, jax.random.key(0))

fig, axes = plt.subplots(
    1, len(networks), figsize=(4.4 * len(networks), 4.6), squeeze=False, layout="constrained"
)
for ax, (name, (model, variables)) in zip(axes[0], networks.items(), strict=True):
    model = model.clone(scales=(1.0,))
    field = np.mean([gradient(model, variables, image) for image in images], 0)
    whole, held = receptive_field.theoretical(model), side_holding(0.9, field)
    reach = SIDE / 2
    relative = np.log10(np.maximum(field / field.max(), 1e-4))
    ax.imshow(relative, cmap="magma_r", extent=(-reach, reach, reach, -reach))
    for side, style in ((held, "-"), (whole, "--")):
        square = plt.Rectangle((-side / 2, -side / 2), side, side, fill=False, linestyle=style)
        ax.add_patch(square)
    ax.set(xlim=(-reach, reach), ylim=(reach, -reach), xlabel="pixels from the score")
    ax.set_title(f"{name}\ntheoretical {whole} pixels, 90% of the gradient in {held}")
