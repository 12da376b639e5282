# %% [markdown]
# # Dense CRF for pydensecrf users
#
# A script that was written for pydensecrf runs after its import lines are changed. Nothing is built
# from C++. Then the same in this package's own terms: one call, scribbles, any features, gradients.
# Photographs are drawn here, and the notebook runs in about a minute.

# %%
# %matplotlib inline
import importlib.util
import time

import jax
import jax.numpy as jnp
import numpy as np

from deeplab_jax import crf, figures, metrics, visualization
from deeplab_jax.data import scenes
from deeplab_jax.types import IGNORE_LABEL

image, truth = scenes.draw_scene(np.random.default_rng(3))
num_labels = len(scenes.CLASS_NAMES)

# %% [markdown]
# ## Something to refine
#
# Blurred labels, one block in eight of them wrong, stand in for a network's softmax.

# %%
rng = np.random.default_rng(0)
probs = scenes.unsure_probs(truth, rng)  # float32 [h, w, labels]

# %% [markdown]
# ## Your script, with other imports
#
# Arrays have pydensecrf's orders: probabilities `[labels, h, w]`, marginals `[labels, h * w]`.

# %%
# in place of: import pydensecrf.densecrf as dcrf
# in place of: from pydensecrf.utils import unary_from_softmax
from deeplab_jax.crf import densecrf as dcrf
from deeplab_jax.crf.densecrf import unary_from_softmax


def refine_with(dcrf, unary_from_softmax):
    h, w = image.shape[:2]
    d = dcrf.DenseCRF2D(w, h, num_labels)
    d.setUnaryEnergy(unary_from_softmax(np.ascontiguousarray(probs.transpose(2, 0, 1))))
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=60, srgb=10, rgbim=np.ascontiguousarray(image), compat=5)
    return np.array(d.inference(5)).reshape(num_labels, h, w).transpose(1, 2, 0)


for attempt in ("first", "second"):
    start = time.perf_counter()
    marginals = refine_with(dcrf, unary_from_softmax)
    print(f"{attempt} call: {time.perf_counter() - start:.2f} s")

# %% [markdown]
# The first call compiles. Where pydensecrf is installed, its marginals are compared with ours:

# %%
if importlib.util.find_spec("pydensecrf"):
    import pydensecrf.densecrf
    import pydensecrf.utils

    theirs = refine_with(pydensecrf.densecrf, pydensecrf.utils.unary_from_softmax)
    print(f"largest difference of two marginals: {np.abs(marginals - theirs).max():.1e}")
else:
    print("pydensecrf is not installed")


# %%
def show(answers):
    """Each answer beside the photograph, the truth and its wrong pixels."""
    rows, captions = [], []
    for name, labels in answers.items():
        confusion = metrics.confusion_matrix(truth, labels, num_classes=num_labels)
        captions.append(f"{name}: mean IoU {metrics.mean_iou(confusion):.3f}")
        rows.append((image, truth, labels, visualization.error_map(image, labels, truth)))
    titles = ("photograph", "truth", "labels", "wrong pixels")
    return figures.picture(
        visualization.sheet(rows, scenes.CLASS_NAMES, titles=titles, captions=captions, side=180)
    )


show({"before": probs.argmax(-1), "after": marginals.argmax(-1)})

# %% [markdown]
# ## The same in one call
#
# `crf.refine` takes and gives `[h, w, labels]`. What pydensecrf calls `sxy`, `srgb` and `compat` of
# the two kernels are the fields of `CRFParams`.

# %%
params = crf.CRFParams(
    appearance_weight=5.0, sigma_xy=60.0, sigma_rgb=10.0,
    smoothness_weight=3.0, sigma_smoothness=3.0,
)  # fmt: skip
again = crf.refine(image, probs, params, num_iterations=5)
print(f"largest difference: {np.abs(again - marginals).max():.1e}")

# %% [markdown]
# ## Scribbles in place of `unary_from_labels`
#
# Pixels that are 255 are unknown. Here 3 % of the pixels are labelled.

# %%
scribbles = np.where(rng.random(truth.shape) < 0.03, truth, IGNORE_LABEL).astype(np.uint8)
filled = crf.refine_labels(image, scribbles, crf.SCRIBBLE_PARAMS, gt_prob=0.7)
titles = ("photograph", "scribbles")
figures.picture(
    visualization.sheet([(image, scribbles)], scenes.CLASS_NAMES, titles=titles, side=180)
)

# %%
show({"filled": filled})

# %% [markdown]
# ## Beyond pydensecrf: any features, `jit` and gradients
#
# A kernel is made of features, points first, and its filter is a function of arrays. The gradient
# of a loss reaches the compatibilities, the energies and the standard deviations.

# %%
kernels = [
    crf.kernel(crf.image_features(image[::2, ::2].astype(np.float32), 30.0, 10.0)),
    crf.kernel(crf.grid_features((64, 64), 1.5)),
]
energies = crf.energies(probs[::2, ::2])
small = truth[::2, ::2]
counted = small != IGNORE_LABEL
wanted = np.where(counted, small, 0)


@jax.jit
def loss(compatibilities):
    q = crf.mean_field(energies, kernels, list(compatibilities), num_iterations=5)
    chosen = jnp.take_along_axis(q, wanted[..., None], -1)[..., 0]
    return -jnp.mean(jnp.log(chosen + 1e-6), where=counted)


value, gradient = jax.value_and_grad(loss)(jnp.array([1.0, 1.0]))
print(f"loss {value:.4f}; its gradient by the two compatibilities: {gradient}")

# %% [markdown]
# [The CRF's page](../../deeplab_jax/crf/README.md) has the table of names, volumes, memory and
# accelerators.
