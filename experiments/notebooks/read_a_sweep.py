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
# # Read a sweep's results
#
# `experiments/sweep_aspp.py` and `experiments/ablations.py` leave `runs.csv`, a line a run. Set
# `SWEEP` to their output folder. Where it is not there, scores are made up, so that the notebook
# runs: what it shows then says nothing about networks.

# %%
# %matplotlib inline
import csv
import itertools
from pathlib import Path

import numpy as np

from deeplab_jax import figures, tables

SWEEP = Path("runs/sweep_aspp")


# %%
def made_up():
    rng = np.random.default_rng(0)
    means = {"LargeFOV": 0.50, "ASPP-S": 0.53, "ASPP-L": 0.52}
    for label, seed in itertools.product(means, (0, 1, 2)):
        score = means[label] + 0.01 * rng.normal()
        yield {"label": label, "seed": seed, "before": score, "after": score + 0.01}


if SWEEP.exists():
    with (SWEEP / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
else:
    print(f"{SWEEP} does not exist: these scores are made up")
    runs = list(made_up())
for run in runs:
    print(run["label"], run["seed"], f"{float(run['before']):.4f}", run["after"] or "-")

# %% [markdown]
# ## The figure
#
# Every seed is a mark: a difference between rows means little where the marks overlap.

# %%
labels = list(dict.fromkeys(run["label"] for run in runs))
scores = {
    label: tuple(
        [float(run[when]) for run in runs if run["label"] == label and run[when] != ""]
        for when in ("before", "after")
    )
    for label in labels
}
figures.sweep(scores)

# %% [markdown]
# ## Differences, and whether they exceed the spread of the seeds

# %%
for one, other in itertools.combinations(labels, 2):
    print(f"{other} against {one}: {tables.compare(scores[one][0], scores[other][0])}")

# %% [markdown]
# ## What the CRF gains
#
# The CRF refines the same network, so seeds are compared in pairs.

# %%
for label, (before, after) in scores.items():
    if after:
        gain = 100 * (np.array(after) - np.array(before))
        print(f"{label}: {gain.mean():+.2f} points, from {gain.min():+.2f} to {gain.max():+.2f}")

# %% [markdown]
# ## How many seeds would settle it?
#
# For a difference `d` and a deviation `s` of a seed, the means of `n` seeds each are apart by two
# standard errors when `n` is at least `8 s**2 / d**2`.

# %%
for one, other in itertools.combinations(labels, 2):
    a, b = scores[one][0], scores[other][0]
    if min(len(a), len(b)) > 1:
        difference = abs(np.mean(b) - np.mean(a))
        variance = (np.var(a, ddof=1) + np.var(b, ddof=1)) / 2
        print(f"{one} and {other}: {max(int(np.ceil(8 * variance / difference**2)), 2)} seeds")
