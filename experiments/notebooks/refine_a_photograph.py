# %% [markdown]
# # Segment a photograph and refine it, step by step
#
# The run of `python experiments/train_voc.py quickstart` segments a drawn scene, and the CRF
# refines the result. Set `RUN` to another work folder and `PHOTOGRAPH` to a file to see your own.
# Where there is no such run, a blurred and partly wrong version of the scene's labels stands in
# for the network's answer, so that the CRF has something to do.

# %%
import importlib.util
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

from deeplab_jax import crf, figures, load, metrics, photographs, visualization
from deeplab_jax.data import scenes

RUN = Path("../../runs/quickstart")
PHOTOGRAPH = None

# %% [markdown]
# ## The network's answer
#
# `probs` holds the probability of each class at each pixel. It is enlarged from a map of stride
# 8, so its borders are soft.

# %%
image, truth = scenes.draw_scene(np.random.default_rng(3))
if PHOTOGRAPH is not None:
    image, truth = photographs.read(PHOTOGRAPH), None


def show(pictures, rows=1):
    """Pictures by their titles; maps of probabilities are white where they are 1."""
    columns = -(-len(pictures) // rows)
    size = (3 * columns, 3.2 * rows)
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for ax, (title, picture) in zip(axes.flat, pictures.items(), strict=True):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
        ax.set_title(title)
        ax.axis("off")


if RUN.exists() or PHOTOGRAPH is not None:
    segmenter = load(RUN)
    class_names, colors = segmenter.class_names, segmenter.meta["class_colors"]
    probs = segmenter.predict(image)
else:
    print(f"{RUN} does not exist: blurred labels stand in for the network")
    class_names, colors = scenes.CLASS_NAMES, None
    probs = scenes.unsure_probs(truth, np.random.default_rng(0))
colors = visualization.palette(class_names, colors)
print(probs.shape, probs.dtype)

# %%
labels = probs.argmax(-1)
pictures = {"photograph": image, "network": visualization.overlay(image, labels, colors=colors)}
show(pictures | {"probability of the winning class": probs.max(-1)})

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
overlays = {
    f"iterations: {n}": visualization.overlay(image, q.argmax(-1), colors=colors)
    for n, q in marginals.items()
}
show(overlays | {f"{class_names[shown]}, {n}": q[..., shown] for n, q in marginals.items()}, rows=2)

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
def compare(answers):
    """The photograph and the truth, then each answer above its wrong pixels."""
    above, below = {"photograph": image}, {"truth": visualization.colorize(truth, colors)}
    for name, answer in answers.items():
        confusion = metrics.confusion_matrix(truth, answer, num_classes=len(class_names))
        title = f"{name}: mean IoU {metrics.mean_iou(confusion):.3f}"
        above[title] = visualization.colorize(answer, colors)
        below[f"{name}: wrong pixels"] = visualization.error_map(image, answer, truth)
    show(above | below, rows=2)


if truth is not None:
    compare({"network": labels, "after the CRF": marginals[10].argmax(-1)})

# %% [markdown]
# ## What the parameters do
#
# With a wide `sigma_rgb` colours that differ count as alike, and classes flow over edges; a
# narrow one leaves speckles. `experiments/search_crf.py` finds good values for a data set.

# %%
settings = {f"sigma_rgb {s}": crf.CRFParams(sigma_rgb=s) for s in (1.0, 3.0, 10.0, 40.0)}
refined = {title: crf.refine(image, probs, chosen) for title, chosen in settings.items()}
show({t: visualization.overlay(image, q.argmax(-1), colors=colors) for t, q in refined.items()})

# %% [markdown]
# With `ipywidgets`, of the extra `notebooks`, sliders move them all. Copy the values that you like
# into `crf.CRFParams(...)`.


# %%
def answer(num_iterations, **values):
    found = crf.refine(image, probs, crf.CRFParams(**values), num_iterations=num_iterations)
    found = found.argmax(-1)
    print(f"{(found != labels).mean():.1%} of the pixels change their class")
    if truth is not None:
        return compare({"network": labels, "after the CRF": found})
    show({"photograph": image, "after": visualization.overlay(image, found, colors=colors)})


if importlib.util.find_spec("ipywidgets"):
    from ipywidgets import FloatSlider, IntSlider, interact

    tops = {"appearance_weight": 20.0, "sigma_xy": 150.0, "sigma_rgb": 40.0}
    tops |= {"smoothness_weight": 20.0, "sigma_smoothness": 10.0}
    still = {"continuous_update": False, "style": {"description_width": "12em"}}
    sliders = {
        name: FloatSlider(value=getattr(params, name), min=0.5, max=top, step=0.5, **still)
        for name, top in tops.items()
    }
    interact(answer, num_iterations=IntSlider(value=10, min=0, max=20, **still), **sliders)
else:
    print("ipywidgets is not installed")
