"""Batches for training: update t is a function of the seed and t, whoever computes it.

Photograph i of update t has the global number g = t * batch_size + i. It is entry g mod n of the
permutation of epoch g div n, and its augmentation is drawn from (seed, g). Nothing else is random,
so a run may stop at any update and go on with other workers, threads or devices.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from jaxtyping import Int64

from deeplab_jax.data import transforms
from deeplab_jax.data.workers import Crop, read_in_processes
from deeplab_jax.types import MEAN_COLOUR, Batch, UserError

UPDATES_AHEAD = 2
"""Number of updates that worker processes prepare ahead."""

# Numbers of the random streams: each use of the seed has its own.
ORDER, AUGMENTATION = 0, 1


@runtime_checkable
class Source(Protocol):
    """Random access to photographs with `image` and `labels`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], Crop]
"""(image uint8 `[h, w, channels]`, labels uint8 `[h, w]`, rng) -> both as crops of crop_size.
Whatever is random is drawn from `rng`, so that a run can be repeated and resumed."""


def batches(
    source: Source,
    *,
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    crop_size: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    augment: Augment | None = None,
    devices: int = 1,
    accumulation: int = 1,
    workers: int = 0,
    mine: Sequence[int] | None = None,
    padding: Sequence[int] = MEAN_COLOUR,
) -> Iterator[Batch]:
    """Updates `start` to `stop - 1`, each `batch_size` random crops in one order. A UserError where
    a worker process was killed.

    Fields have the leading axes [devices, accumulation, m], with m as small as holds the batch.
    Unused slots hold the value `padding` of each channel, labels of 255 and sample -1; crops are
    padded with it. `scales` and `flip` are the paper's augmentation; `augment` replaces it. With
    `workers` = 0 threads of this process decode; otherwise so many processes, which end with this
    one. In a run of several processes `mine` lists the devices whose slots are filled; None: all.
    """
    slots = place_samples(batch_size, devices=devices, accumulation=accumulation)
    slots = slots if mine is None else slots[list(mine)]
    samples = np.sort(slots[slots >= 0])
    numbers = np.add.outer(np.arange(start, stop) * batch_size, samples).ravel()
    if augment is None:
        options = {"crop_size": crop_size, "scales": tuple(scales), "flip": flip}
        augment = partial(transforms.augment, **options, padding=tuple(padding))
    shape = (crop_size, crop_size, len(padding))
    make = partial(random_crop, source, augment, shape, seed, numbers)
    if workers:
        ahead = UPDATES_AHEAD * len(samples)
        stream = read_in_processes(make, len(numbers), workers=workers, shape=shape, ahead=ahead)
    else:
        threads = os.cpu_count() or 1
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        stream = iter(grain.MapDataset.range(len(numbers)).map(make).to_iter_dataset(options))
    with contextlib.closing(stream):
        for _ in range(start, stop):
            yield assemble(stream, slots, crop_size, padding)


def place_samples(
    batch_size: int, *, devices: int, accumulation: int
) -> Int64[np.ndarray, "devices accumulation m"]:
    """Number of the photograph in each slot of an update; -1 in an empty slot.

    An accumulation step holds the same photographs however many devices share it.

    >>> place_samples(3, devices=2, accumulation=1).tolist()
    [[[0, 1]], [[2, -1]]]
    """
    m = -(-batch_size // (devices * accumulation))
    sample = np.arange(accumulation * devices * m).reshape(accumulation, devices, m)
    return np.where(sample < batch_size, sample, -1).swapaxes(0, 1)


def assemble(
    crops: Iterable[Crop],
    slots: Int64[np.ndarray, "devices accumulation m"],
    crop_size: int,
    padding: Sequence[int] = MEAN_COLOUR,
) -> Batch:
    """The next crops, which come in the order of their numbers, copied to their slots."""
    blank_image, blank_labels = transforms.blank(crop_size, crop_size, padding)
    image = np.empty((*slots.shape, *blank_image.shape), np.uint8)
    labels = np.empty((*slots.shape, *blank_labels.shape), np.uint8)
    image[slots < 0], labels[slots < 0] = blank_image, blank_labels
    in_order = sorted(zip(*np.nonzero(slots >= 0), strict=True), key=slots.__getitem__)
    for slot, crop in zip(in_order, crops, strict=False):
        image[slot], labels[slot] = crop
    return Batch(image=image, labels=labels, sample=slots.astype(np.int32))


def random_crop(
    source: Source, augment: Augment, shape: tuple[int, ...], seed: int, numbers: np.ndarray, i: int
) -> Crop:
    """The crop `[rows, columns, channels]` of the photograph of global number `numbers[i]`."""
    number = int(numbers[i])
    record = source[index_of(number, seed, len(source))]
    rng = np.random.default_rng((seed, AUGMENTATION, number))
    image, labels = augment(record["image"], record["labels"], rng)
    if image.shape != shape or labels.shape != shape[:2]:
        raise UserError(
            f"augment gave a photograph of {image.shape} and labels of {labels.shape}, and crops "
            f"of {shape[:2]} with {shape[2]} channels were expected; pad or cut to crop_size in it"
        )
    return image, labels


def index_of(number: int, seed: int, length: int) -> int:
    """Which photograph of a source has a global number."""
    epoch, position = divmod(number, length)
    return int(epoch_order(seed, epoch, length)[position])


def names_of(source: Source, update: int, *, seed: int, batch_size: int) -> list[str]:
    """Names of the photographs of an update."""
    numbers = range(update * batch_size, (update + 1) * batch_size)
    return [source[index_of(number, seed, len(source))]["name"] for number in numbers]


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, length: int) -> Int64[np.ndarray, " n"]:
    """The order in which an epoch shows its photographs."""
    return np.random.default_rng((seed, ORDER, epoch)).permutation(length)
