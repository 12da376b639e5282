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
# # Sliders for the CRF
#
# Move a slider and see what the CRF makes of a photograph. The photograph and the blurred labels,
# which stand in for a network, are drawn here; where `RUN` is the work folder of a run, its network
# is taken. Set `PHOTOGRAPH` to a file for your own. It is scaled to `SIDE` pixels, so that the CRF
# answers at once.

# %%
import io
from pathlib import Path

import ipywidgets as widgets
import numpy as np
from PIL import Image as PILImage
from scipy import ndimage

from deeplab_jax import crf, load, metrics, photographs, visualization
from deeplab_jax.data import scenes
from deeplab_jax.types import IGNORE_LABEL

RUN = Path("../../runs/quickstart")
PHOTOGRAPH = None
SIDE = 320

# %%
if PHOTOGRAPH is None:
    image, truth = scenes.draw_scene(np.random.default_rng(3), size=192)
else:
    picture = PILImage.fromarray(photographs.read(PHOTOGRAPH))
    picture.thumbnail((SIDE, SIDE))
    image, truth = np.asarray(picture), None
if PHOTOGRAPH is None and not RUN.exists():
    class_names, class_colors = scenes.CLASS_NAMES, None
    coarse = np.where(truth == IGNORE_LABEL, 0, truth)[::8, ::8].copy()
    rng = np.random.default_rng(0)
    wrong = rng.random(coarse.shape) < 1 / 8
    coarse[wrong] = rng.integers(0, len(class_names), wrong.sum())
    votes = np.eye(len(class_names))[coarse].repeat(8, 0).repeat(8, 1)
    soft = ndimage.gaussian_filter(votes, (5, 5, 0)) + 0.02
    probs = (soft / soft.sum(-1, keepdims=True)).astype(np.float32)
else:
    segmenter = load(RUN)
    class_names, class_colors = segmenter.class_names, segmenter.meta.get("class_colors")
    probs = segmenter.predict(image)
colors = visualization.palette(class_names, class_colors)


# %%
def png(pixels, factor=2):
    """A picture for a widget, enlarged."""
    size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).resize(size, PILImage.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def draw(**values):
    """The photograph under the refined classes, and what to say of them."""
    iterations = values.pop("num_iterations")
    refined = crf.refine(image, probs, crf.CRFParams(**values), num_iterations=iterations)
    labels = refined.argmax(-1)
    told = f"{(labels != probs.argmax(-1)).mean():.1%} of the pixels changed their class"
    shown = visualization.overlay(image, labels, colors=colors)
    if truth is not None:
        confusion = metrics.confusion_matrix(truth, labels, num_classes=len(class_names))
        told += f"; mean IoU {metrics.mean_iou(confusion):.3f}"
        shown = np.concatenate([shown, visualization.error_map(image, labels, truth)], 1)
    return png(shown), told


# %% [markdown]
# On the left the classes over the photograph, on the right the wrong pixels in red.


# %%
def slider(name, value, top, step):
    options = {"min": step, "max": top, "step": step, "continuous_update": False}
    style = {"style": {"description_width": "12em"}, "layout": {"width": "32em"}}
    return widgets.FloatSlider(value=value, description=name, **options, **style)


sliders = {
    "appearance_weight": slider("appearance_weight", 4.0, 20.0, 0.5),
    "sigma_xy": slider("sigma_xy", 67.0, 150.0, 1.0),
    "sigma_rgb": slider("sigma_rgb", 3.0, 40.0, 0.5),
    "smoothness_weight": slider("smoothness_weight", 3.0, 20.0, 0.5),
    "sigma_smoothness": slider("sigma_smoothness", 1.0, 10.0, 0.5),
}
iterations = widgets.IntSlider(
    10, 0, 20, description="num_iterations", continuous_update=False,
    style={"description_width": "12em"}, layout={"width": "32em"},
)  # fmt: skip
shown, told = widgets.Image(format="png"), widgets.Label()


def update(_=None):
    values = {name: control.value for name, control in sliders.items()}
    shown.value, told.value = draw(**values, num_iterations=iterations.value)


for control in (*sliders.values(), iterations):
    control.observe(update, names="value")
update()
print(told.value)
shown.layout.width = "768px"
widgets.VBox([*sliders.values(), iterations, told, shown])

# %% [markdown]
# Copy the values that you like into `crf.CRFParams(...)`, or let
# `python experiments/search_crf.py RUN` look for the best ones over a data set.
