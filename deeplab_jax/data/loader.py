"""Batches for training: update t is a function of the seed and t, whoever computes it.

Photograph i of update t has the global number g = t * batch_size + i. It is entry g mod n of the
permutation of epoch g div n, and its augmentation is drawn from (seed, g). Nothing else is random,
so a run may stop at any update and go on with other workers, threads or devices.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags
from jaxtyping import Int64

from deeplab_jax.data import transforms
from deeplab_jax.types import Batch, UserError

GROUP = 4
"""Crops that travel together: each message between processes costs as much as a resizing."""

# What a random stream is for, so that two uses of one seed do not share it.
ORDER, AUGMENTATION = 0, 1


@runtime_checkable
class Source(Protocol):
    """Random access to photographs with `image` and `labels`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def batches(
    source: Source,
    *,
    seed: int,
    start: int,
    stop: int,
    batch_size: int,
    crop_size: int,
    scales: Sequence[float],
    mirror: bool,
    devices: int,
    accumulation: int,
    workers: int,
    mine: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Updates `start` to `stop - 1`, each `batch_size` random crops in one order.

    Fields have the leading axes [devices, accumulation, m], with m as small as holds the batch.
    Places left over hold the mean colour, labels of 255 and sample -1. With `workers` = 0 threads
    of this process decode; otherwise so many processes, which die with this one. `mine` numbers
    the devices whose places are filled, in a run of several processes; None: all.

    Raises:
      UserError: a worker process was killed.
    """
    places = place_samples(batch_size, devices=devices, accumulation=accumulation)
    places = places if mine is None else places[list(mine)]
    samples = np.sort(places[places >= 0]).tolist()
    crops = RandomCrops(source, seed, crop_size, tuple(scales), mirror)
    numbers = grain.MapDataset.range((stop - start) * len(samples)).map(
        lambda k: (start + k // len(samples)) * batch_size + samples[k % len(samples)]
    )
    groups = iter(read_ahead(numbers.map(crops).batch(GROUP, batch_fn=stack), workers))
    stream = crops_of(groups)
    try:
        for _ in range(start, stop):
            yield assemble({i: next(stream) for i in samples}, places, crop_size)
    finally:
        groups.close()


def stack(crops: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Crops as two contiguous arrays.

    Through shared memory grain sends nothing else; other things fill a pipe, on which a worker that
    is told to stop waits until it is killed.
    """
    images, labels = zip(*crops, strict=True)
    return np.stack(images), np.stack(labels)


def crops_of(
    groups: Iterator[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The crops of all groups; a killed worker is told in a sentence."""
    try:
        for images, labels in groups:
            yield from zip(images, labels, strict=True)
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise UserError(
            "a process that reads photographs was killed; if the machine ran out of memory give "
            "fewer --workers, and type the same command again"
        ) from None


def place_samples(
    batch_size: int, *, devices: int, accumulation: int
) -> Int64[np.ndarray, "devices accumulation m"]:
    """Which photograph of an update sits where; -1 where none does.

    An accumulation step holds the same photographs however many devices share it.

    >>> place_samples(3, devices=2, accumulation=1).tolist()
    [[[0, 1]], [[2, -1]]]
    """
    m = -(-batch_size // (devices * accumulation))
    sample = np.arange(accumulation * devices * m).reshape(accumulation, devices, m)
    return np.where(sample < batch_size, sample, -1).swapaxes(0, 1)


def assemble(
    crops: Sequence[tuple[np.ndarray, np.ndarray]] | Mapping[int, tuple[np.ndarray, np.ndarray]],
    places: Int64[np.ndarray, "devices accumulation m"],
    crop_size: int,
) -> Batch:
    """The crops of one update, by their number in it, each in its place."""
    blank_image, blank_labels = transforms.blank(crop_size, crop_size)
    image = np.empty((*places.shape, *blank_image.shape), np.uint8)
    labels = np.empty((*places.shape, *blank_labels.shape), np.uint8)
    for place in np.ndindex(places.shape):
        sample = places[place]
        image[place], labels[place] = crops[sample] if sample >= 0 else (blank_image, blank_labels)
    return Batch(image=image, labels=labels, sample=places.astype(np.int32))


@dataclass(frozen=True)
class RandomCrops:
    """Global number of a photograph -> its crop."""

    source: Source
    seed: int
    crop_size: int
    scales: tuple[float, ...]
    mirror: bool

    def __call__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        record = self.source[index_of(number, self.seed, len(self.source))]
        return transforms.augment(
            record["image"],
            record["labels"],
            crop_size=self.crop_size,
            scales=self.scales,
            mirror=self.mirror,
            rng=np.random.default_rng((self.seed, AUGMENTATION, number)),
        )


def index_of(number: int, seed: int, length: int) -> int:
    """Which photograph of a source has a global number."""
    epoch, place = divmod(number, length)
    return int(epoch_order(seed, epoch, length)[place])


def names_of(source: Source, update: int, *, seed: int, batch_size: int) -> list[str]:
    """Names of the photographs of an update."""
    numbers = range(update * batch_size, (update + 1) * batch_size)
    return [source[index_of(number, seed, len(source))]["name"] for number in numbers]


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, length: int) -> Int64[np.ndarray, "n"]:
    """The order in which an epoch shows its photographs."""
    return np.random.default_rng((seed, ORDER, epoch)).permutation(length)


def read_ahead(crops: grain.MapDataset, workers: int) -> grain.IterDataset:
    """The crops in order, decoded ahead of use by threads or by worker processes."""
    num_threads = 1 if workers else os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    stream = crops.to_iter_dataset(options)
    if not workers:
        return stream
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads flags that nobody parses here
    processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return stream.mp_prefetch(processes, worker_init_fn=die_with_parent)


def die_with_parent(index: int, count: int) -> None:
    """Let this worker process end when its parent does, by SIGKILL too, and not before.

    Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of a job; it is the
    parent that ends its workers then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
