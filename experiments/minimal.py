"""DeepLab v2 trained and scored on a folder of photographs and masks: the page to copy.

    python experiments/minimal.py FOLDER [UPDATES]

No checkpoints, no signals, one device; train_voc.py has all of that. extend.md shows what to change
for another loss, network, optimiser or augmentation.
"""

import sys
from pathlib import Path

import jax

from deeplab_jax import build, evaluation, metrics, optim, train
from deeplab_jax.data import builders, loader
from deeplab_jax.data.folders import Place

CROP, BATCH = 161, 8


def main(root: Path, updates: int = 400) -> None:
    data = builders.open_dataset(Place(root), splits=("train", "val"))

    # A small ResNet with ASPP, from scratch; the paper's networks are resnet101_aspp_msc(...) etc.
    model = build(
        len(data.class_names),
        stage_sizes=(1, 2, 2, 1),
        width=16,
        norm="trained",
        aspp_rates=(2, 4, 8, 12),
        scales=(1.0,),
    )
    schedule = optim.poly(0.03, updates)
    optimizer = optim.caffe_sgd(schedule, classifier_multiplier=0.1)

    update = jax.jit(
        train.make_step(model, optimizer, seed=0, batch_size=BATCH, group_size=BATCH),
        donate_argnums=0,
    )
    state = train.init_state(train.init_variables(model, jax.random.key(0)), optimizer)
    batches = loader.batches(
        data.splits["train"],
        seed=0,
        start=0,
        stop=updates,
        batch_size=BATCH,
        crop_size=CROP,
        scales=(0.75, 1.0, 1.25, 1.5),
    )
    for number, batch in enumerate(batches, 1):
        state, values = update(state, jax.tree.map(lambda leaf: leaf[0], batch))  # one device
        if number % 20 == 0 or number == updates:
            print(f"update {number} of {updates}: loss {float(values['loss']):.3f}")

    variables = train.variables_of(state)
    confusion = evaluation.evaluate(model, variables, data.splits["val"], pad_to=None)
    print(metrics.table(confusion, data.class_names))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
