# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Atrous convolution
#
# What the rate of a convolution does, in one and two dimensions, with the operations that the
# networks of this package are made of (Section 3.1 of the paper). Nothing is downloaded; the
# notebook runs in a few seconds.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

from deeplab_jax import DeepLabV2, figures, receptive_field, train
from deeplab_jax.models import layers

# %% [markdown]
# ## One dimension
#
# $y[i] = \sum_k x[i + r k]\, w[k]$: the taps of the kernel stand $r$ samples apart. The kernel has
# three weights whatever the rate, and sees $2r + 1$ samples.

# %%
signal = np.sin(np.arange(64) / 5) + (np.arange(64) > 40)
taps = np.array([-1.0, 0.0, 1.0])  # the difference of two samples, 2r apart


def convolve(signal, taps, rate):
    """`atrous_conv` works on pictures [b, h, w, channels]; a signal is one of a single row."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, :, 0, 0] = taps
    picture = jnp.asarray(signal, jnp.float32)[None, None, :, None]
    return np.asarray(layers.atrous_conv(picture, jnp.asarray(kernel), rate=rate))[0, 0, :, 0]


fig, axes = plt.subplots(1, 3, figsize=(13, 3), sharey=True, layout="constrained")
for ax, rate in zip(axes, (1, 4, 12), strict=True):
    ax.plot(signal, color="gray", label="signal")
    ax.plot(convolve(signal, taps, rate), "o-", markersize=3, color="#1b3a6b", label="response")
    ax.set(title=f"rate {rate}: {2 * rate + 1} samples wide", xlabel="sample")
    ax.legend()
axes[0].set_ylabel("value")

# %% [markdown]
# The paper's other way to compute it: split the signal into $r$ interleaved ones, convolve each at
# rate 1, and put them together again. Both are equal.

# %%
rate = 4
apart = np.zeros_like(signal)
for phase in range(rate):
    apart[phase::rate] = convolve(signal[phase::rate], taps, 1)
np.testing.assert_allclose(apart, convolve(signal, taps, rate), atol=1e-6)

# %% [markdown]
# ## Two dimensions: why not pool instead?
#
# A classifier shrinks its map by 32. To have scores at every eighth pixel one can take the strides
# of the last stages away, but then their kernels see a smaller part of the photograph than they
# were trained for. A rate gives them the old reach back. Below: an edge filter on every second
# pixel, enlarged, and the same filter at rate 2 on all pixels (Figure 2 of the paper).

# %%
side = 96
rows, columns = np.mgrid[:side, :side]
picture = ((np.hypot(rows - 48, columns - 40) < 30) ^ (columns // 8 % 2 == 0)).astype(np.float32)
edge = np.zeros((3, 3, 1, 1), np.float32)
edge[:, 0, 0, 0], edge[:, 2, 0, 0] = -1, 1


def filtered(picture, rate):
    output = layers.atrous_conv(jnp.asarray(picture)[None, ..., None], jnp.asarray(edge), rate=rate)
    return np.asarray(output)[0, ..., 0]


small = filtered(picture[::2, ::2], 1)
enlarged = layers.resize_bilinear(small[None, ..., None], (side, side), alignment="half_pixel")
pictures = {
    "picture": picture,
    "shrunk, filtered, enlarged": np.asarray(enlarged)[0, ..., 0],
    "filtered at rate 2": filtered(picture, 2),
}
fig, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
for ax, (title, values) in zip(axes, pictures.items(), strict=True):
    ax.imshow(values, cmap="gray")
    ax.set(title=title, xlabel="pixel", ylabel="pixel")

# %% [markdown]
# ## Field of view against cost
#
# A larger kernel sees further too, and pays for it with weights and multiplications. A rate is
# free: the taps only move. The paper's Table 1 makes the same point with a 7x7 kernel at rate 4
# and a 3x3 kernel at rate 12.

# %%
channels, classes = 2048, 21
for kernel, rate in ((3, 1), (7, 1), (7, 4), (3, 4), (3, 12), (3, 24)):
    span = (kernel - 1) * rate + 1
    weights = kernel * kernel * channels * classes
    print(f"{kernel}x{kernel} at rate {rate:2d}: {span:2d} scores wide, {weights:>9,} weights")

# %% [markdown]
# ## Several rates at once
#
# Atrous spatial pyramid pooling sums branches with different rates. The dots are the places in the
# score map (eight pixels apart) that the score in the middle reads.

# %%
rate_sets = {"LargeFOV": (12,), "ASPP-S": (2, 4, 8, 12), "ASPP-L": (6, 12, 18, 24)}
fig, axes = plt.subplots(1, 3, figsize=(13, 4.4), sharex=True, sharey=True, layout="constrained")
for ax, (name, rates) in zip(axes, rate_sets.items(), strict=True):
    for rate, (color, marker) in zip(rates, figures.LINES, strict=False):
        steps = rate * np.array([-1, 0, 1])
        ax.plot(
            *map(np.ravel, np.meshgrid(steps, steps)), marker, color=color, label=f"rate {rate}"
        )
    ax.set(title=name, xlabel="column of the score map", aspect="equal")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
axes[0].set_ylabel("row of the score map")

# %% [markdown]
# ## What an untrained network looks at
#
# The gradient of the middle score says how much each pixel matters. Blocks start as the identity,
# so before training one sees the taps of the head, eight pixels a step apart; the theoretical
# receptive field is larger, by what the trunk can add. `experiments/field_of_view.py` draws the
# same for networks that you have trained.

# %%
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (417, 417, 3), np.uint8)]
fields = {}
for name, rates in rate_sets.items():
    model = DeepLabV2(
        num_classes=6, stage_sizes=(1, 1, 1, 1), width=4, norm="trained", aspp_rates=rates,
        scales=(1.0,),
    )  # fmt: skip
    variables = train.init_variables(model, jax.random.key(0))
    field = receptive_field.effective(model, variables, images, side=417)
    theoretical, held = receptive_field.theoretical(model), receptive_field.side_holding(0.9, field)
    fields[name] = (field, theoretical, held)
figures.field_of_view(fields)
