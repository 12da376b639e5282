"""The paper's two networks at full width on real photographs; minutes each on two CPU cores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import losses, optim, train
from deeplab_jax.data import builders, loader
from deeplab_jax.data.folders import Place
from deeplab_jax.models.deeplab import build
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import IGNORE_LABEL

pytestmark = [pytest.mark.slow, pytest.mark.data]

RECIPES = ("vgg16_aspp_l", "resnet101_aspp_msc")


@pytest.mark.parametrize("preset", RECIPES)
def test_the_network_learns_ten_photographs(preset, data_folder, tmp_path):
    """From scratch, 161-pixel crops: the loss falls below half the entropy of the classes."""
    config = PRESETS[preset].model
    place = Place(data_folder / "voc2012_animals", tmp_path)
    train_split = builders.open_dataset(place, ["train"]).splits["train"]
    options = {"batch_size": 10, "crop_size": 161, "scales": (0.5,), "flip": False}
    batches = loader.batches(train_split, seed=0, start=0, stop=1, **options)
    batch = jax.tree.map(lambda leaf: leaf[0], next(batches))
    sizes = {"stage_sizes": config.stage_sizes, "scales": config.scales}
    model = build(21, backbone=config.backbone, norm="trained", **sizes)
    # ResNet's classifier sums 4 x 9 x 2048 products a logit: at the trunk's rate it overshoots.
    multiplier = 1.0 if config.backbone == "vgg" else 0.02
    optimizer = optim.caffe_sgd(lambda step: 5e-3, classifier_multiplier=multiplier)
    state = train.init_state(train.init_variables(model, jax.random.key(0)), optimizer)
    update = train.make_step(model, optimizer, seed=0, batch_size=10, group_size=10)
    step = jax.jit(update, donate_argnums=0)
    sizes = train.map_sizes(model, train.variable_shapes(model), (161, 161))
    targets = losses.label_maps(jnp.asarray(batch.labels[0]), sizes, alignment="half_pixel")
    goal = 0.5 * sum(map(entropy, targets))
    history = []
    while len(history) < 60 and not (history and history[-1] < goal):
        state, values = step(state, batch)
        history.append(float(values["loss"]))
        print(f"{preset} update {len(history)}: loss {history[-1]:.3f}, goal {goal:.3f}")
    assert history[-1] < goal


def entropy(labels) -> float:
    """Of the class frequencies of the labelled pixels, in nats."""
    labels = np.asarray(labels)
    counts = np.bincount(labels[labels != IGNORE_LABEL])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
