# %% [markdown]
# # Train a small network and look at its mistakes
#
# The pieces that `experiments/train_voc.py` puts together, one by one, on scenes that are drawn
# here. Set `ROOT` to a folder in VOC layout for your own photographs, and raise `UPDATES`: with the
# few of this notebook the network has only begun to learn.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import jax
import numpy as np

from deeplab_jax import build, evaluation, figures, metrics, optim, train, visualization
from deeplab_jax.data import builders, loader, scenes
from deeplab_jax.data.folders import Place

ROOT = None
UPDATES = 40
CROP = 97
BATCH = 8

# %% [markdown]
# ## Data
#
# Photographs and masks are prepared once, as records that TFDS reads without TensorFlow.

# %%
scratch = Path(tempfile.mkdtemp())
root = ROOT or scratch / "scenes"
if ROOT is None:
    scenes.write_scenes(root, num_train=80, num_val=12, size=128, seed=0)
data = builders.open_dataset(Place(root, scratch / "prepared"), splits=("train", "val"))
print(data.class_names, {name: len(split) for name, split in data.splits.items()})

# %% [markdown]
# The batch of update *t* depends on the seed and *t* alone. Here are three crops of the first;
# cream marks pixels that do not count, the padding and the outlines of objects.

# %%
stream = loader.batches(
    data.splits["train"], seed=0, start=0, stop=UPDATES, batch_size=BATCH, crop_size=CROP,
    scales=(0.75, 1.0, 1.25), flip=True, devices=1, accumulation=1, workers=0,
)  # fmt: skip
batches = list(stream)
first = jax.tree.map(lambda leaf: leaf[0, 0], batches[0])
rows = [(first.image[i], first.labels[i]) for i in range(3)]
page = visualization.sheet(rows, data.class_names, titles=("crop", "labels"), side=200)
figures.picture(page)

# %% [markdown]
# ## Network, recipe, updates
#
# The update is written for one device; `jax.jit` is all it needs. The first one is compiled, for
# about half a minute.

# %%
model = build(
    num_classes=len(data.class_names), stage_sizes=(1, 1, 1, 1), width=8, norm="trained",
    aspp_rates=(1, 2, 4, 6), scales=(1.0,),
)  # fmt: skip
schedule = optim.poly(0.02, UPDATES, power=0.9)
optimizer = optim.caffe_sgd(
    schedule, momentum=0.9, weight_decay=5e-4, classifier_multiplier=1.0, momentum_order="caffe"
)
update = train.make_step(model, optimizer, seed=0, batch_size=BATCH, group_size=BATCH)
state = train.init_state(train.init_variables(model, jax.random.key(0)), optimizer)

# %%
records = []


def after_step(number, state, values):
    record = {name: float(value) for name, value in values.items()}
    records.append({"step": number, "learning_rate": float(schedule(number - 1)), **record})
    if number == 1 or number % 10 == 0:
        print(f"update {number:3d} of {UPDATES}: loss {record['loss']:.3f}")


one_device = (jax.tree.map(lambda leaf: leaf[0], batch) for batch in batches)
state = train.fit(jax.jit(update), state, one_device, start=0, after_step=after_step)
variables = {"params": state.params, "batch_stats": state.batch_stats}
figures.curves(records)

# %% [markdown]
# ## Which classes does it take for which?

# %%
seen, split = [], metrics.empty_tally(model.num_classes)
predictions = evaluation.each_prediction(model, variables, data.splits["val"], pad_to=None)
for item, (labels,) in predictions:
    found = metrics.tally(item["labels"], labels, num_classes=model.num_classes)
    split = metrics.add(split, found)
    seen.append((metrics.mean_iou(found.confusion), item, labels))
confusion = split.confusion
print(metrics.table(split, data.class_names))
figures.confusion(confusion, data.class_names)

# %%
figures.class_bars({"network": metrics.iou(confusion)}, data.class_names)

# %% [markdown]
# ## The worst photographs

# %%
rows, captions = [], []
for score, item, labels in sorted(seen, key=lambda entry: entry[0])[:3]:
    image, truth = item["image"], item["labels"]
    rows.append((image, truth, labels, visualization.error_map(image, labels, truth)))
    captions.append(f"{item['name']}: mean IoU {score:.3f}")
titles = ("photograph", "truth", "prediction", "wrong pixels")
page = visualization.sheet(rows, data.class_names, titles=titles, side=200, captions=captions)
figures.picture(page)

# %% [markdown]
# Did it learn anything at all? The number to beat is the mean IoU of a network that gives every
# pixel the most frequent class.

# %%
constant = np.zeros_like(confusion)
constant[:, confusion.sum(1).argmax()] = confusion.sum(1)
print(f"network {metrics.mean_iou(confusion):.3f}, constant {metrics.mean_iou(constant):.3f}")
