# %% [markdown]
# # Read a sweep's results
#
# `experiments/sweep.py` and `experiments/sweep_aspp.py` leave `runs.csv`, a line a run. Here is a
# sweep over three sets of rates on CamVid, two seeds each, that was measured with this code.
# Set `SWEEP` to the output folder of your own, such as `../../runs/sweep_aspp`.

# %%
# %matplotlib inline
import csv
import itertools
from pathlib import Path

import numpy as np

from deeplab_jax import figures, sweeps

SWEEP = Path("../results/camvid_sweep")

# %%
with (SWEEP / "runs.csv").open() as file:
    runs = list(csv.DictReader(file))
for run in runs:
    refined = run["mean_iou_after_crf"]
    after = f", after the CRF {float(refined):.4f}" if refined else ""
    print(f"{run['row']:<10} seed {run['seed']}: mean IoU {float(run['mean_iou']):.4f}{after}")

# %% [markdown]
# ## The figure
#
# Each mark is a seed. Where the marks of two rows overlap, their difference means little.

# %%
labels = list(dict.fromkeys(run["row"] for run in runs))
scores = {
    label: tuple(
        [float(run[when]) for run in runs if run["row"] == label and run[when] != ""]
        for when in ("mean_iou", "mean_iou_after_crf")
    )
    for label in labels
}
figures.sweep(scores)

# %% [markdown]
# ## Differences, and whether they exceed the spread of the seeds

# %%
for one, other in itertools.combinations(labels, 2):
    print(f"{other} against {one}: {sweeps.compare(scores[one][0], scores[other][0])}")

# %% [markdown]
# ## What the CRF gains
#
# The CRF refines the very network that was scored before it, so each seed is compared with itself.
# Such a gain can be certain although the spread of the seeds is larger than it.

# %%
for label, (before, after) in scores.items():
    if after:
        gain = 100 * (np.array(after) - np.array(before))
        print(f"{label}: {gain.mean():+.2f} points, from {gain.min():+.2f} to {gain.max():+.2f}")

# %% [markdown]
# ## How many seeds would settle it?
#
# Let $d$ be the difference of two rows and $s$ the standard deviation over seeds. The difference
# of two means over $n$ seeds each has the standard error $s \sqrt{2 / n}$, so $d$ is two standard
# errors when $n = 8 s^2 / d^2$. From two seeds both $d$ and $s$ are rough, and so is this number.

# %%
for one, other in itertools.combinations(labels, 2):
    a, b = scores[one][0], scores[other][0]
    if min(len(a), len(b)) > 1:
        difference = abs(np.mean(b) - np.mean(a))
        variance = (np.var(a, ddof=1) + np.var(b, ddof=1)) / 2
        print(f"{one} and {other}: {max(int(np.ceil(8 * variance / difference**2)), 2)} seeds")
