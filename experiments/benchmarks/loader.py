"""Time reading photographs for training, against bare decoding and a PyTorch DataLoader.

    python experiments/benchmarks/loader.py data/voc2012_animals --workers 0 1 2 4

Prints images/s, CPU milliseconds an image, and their ratio to bare decoding of the same
photographs: for the bare decode (the photograph alone, and with its mask), for decoding and
augmentation in one thread, with OpenCV and with Pillow, and for whole batches from our loader and,
by turns, from a DataLoader that does the same work the usual way (Pillow, the files themselves,
float tensors), where torch is installed; masks must be PNG. CPU times are of this process and its
workers, start-up left out, and are steadier than images/s on a machine that does other things.
Linux only.

Expected with OpenCV on two cores: decode and augmentation 1.5 times the bare decode, and more than
twice the images/s of the DataLoader.
"""

import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from deeplab_jax.data import builders, decoding, folders, loader, transforms
from deeplab_jax.presets import PRESETS

CONFIG = PRESETS["resnet101_aspp_msc"]
CROP = CONFIG.data.crop_size
SCALES = CONFIG.data.augmentation_scales
BATCH = CONFIG.batch_size
ROUNDS = 5
MEAN = np.array(transforms.MEAN_COLOUR, np.float32)


@dataclass(frozen=True)
class Args:
    root: tyro.conf.Positional[Path]
    """Data set."""
    split: str = "train"
    photographs: int = 300
    """Number of photographs that are read repeatedly."""
    images: int = 1500
    """Photographs a measurement goes over, in five rounds of which the median counts."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of worker processes; 0: threads of this one (ours), this thread (DataLoader)."""
    prepared_dir: Path = Path("prepared")


@dataclass(frozen=True)
class Part:
    """The first records of a split, as a source."""

    source: builders.Source
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        return self.source[index]


def cpu_seconds() -> float:
    """User and system time of this process and its living workers."""
    ticks = 0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def settle() -> None:
    """Waits until readers that run ahead have filled their buffers."""
    while True:
        before = cpu_seconds()
        time.sleep(0.5)
        if cpu_seconds() - before < 0.05:
            return


def measure(steps: Iterator, number: int, ahead: int) -> tuple[float, float]:
    """(seconds, CPU seconds) of `number` steps, after the `ahead` that are ready already."""
    for _ in itertools.islice(steps, ahead):
        pass
    cpu, then = cpu_seconds(), time.perf_counter()
    for _ in itertools.islice(steps, number):
        pass
    found = time.perf_counter() - then, cpu_seconds() - cpu
    settle()
    return found


def compare(
    kinds: dict[str, Iterator], *, images: int, each: int = 1, ahead: int = 0, bare: float = 0
) -> list[tuple[float, float]]:
    """Prints the median of several rounds for each kind, by turns.

    `each` is the number of photographs a step gives, `ahead` how many steps a kind may have ready,
    `bare` what a bare decode takes; of the first kind where it is 0. Gives (seconds, CPU seconds)
    an image.
    """
    number = max(images // each // ROUNDS, 1)
    rounds = [[measure(k, number, ahead) for k in kinds.values()] for _ in range(ROUNDS + 1)]
    medians = np.median(rounds[1:], axis=0) / (number * each)  # the first round warms up
    bare = bare or medians[0][1]
    for name, (seconds, cpu) in zip(kinds, medians, strict=True):
        print(f"{name:36}{1 / seconds:9.1f} images/s{cpu * 1e3:8.2f} ms CPU{cpu / bare:7.2f}")
    return medians.tolist()


@contextlib.contextmanager
def with_pillow() -> Iterator[None]:
    """As if OpenCV were not installed, in this process."""
    cv2 = decoding.cv2, transforms.cv2
    decoding.cv2 = transforms.cv2 = None
    try:
        yield
    finally:
        decoding.cv2, transforms.cv2 = cv2


def read_records(source: builders.Source, number: int) -> list[tuple[bytes, bytes]]:
    """Photographs as they are stored, and their masks."""
    records = (source.records[i] for i in range(number))
    return [(record["image"], record["labels"]) for record in records]


def ours(source: Part, workers: int) -> Iterator:
    return loader.batches(
        source,
        seed=0,
        start=0,
        stop=10**6,
        batch_size=BATCH,
        crop_size=CROP,
        scales=SCALES,
        mirror=True,
        devices=1,
        accumulation=1,
        workers=workers,
    )


@dataclass(frozen=True)
class UsualDataset:
    """What a PyTorch user writes: Pillow, one step after the other, float tensors."""

    pairs: Sequence[folders.Pair]

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple:
        import torch

        rng = np.random.default_rng(index)
        pair = self.pairs[index % len(self.pairs)]
        image, labels = Image.open(pair.photograph), Image.open(pair.mask)
        factor = SCALES[rng.integers(len(SCALES))]
        size = tuple(max(1, int(n * factor)) for n in image.size)
        image = image.resize(size, Image.Resampling.BILINEAR)
        labels = labels.resize(size, Image.Resampling.NEAREST)
        canvas = tuple(max(n, CROP) for n in size)
        padded = Image.new("RGB", canvas, transforms.MEAN_COLOUR)
        padded_labels = Image.new(labels.mode, canvas, 255)  # palette indices are class ids
        padded.paste(image)
        padded_labels.paste(labels)
        left, top = (int(rng.random() * (n - CROP + 1)) for n in canvas)
        box = (left, top, left + CROP, top + CROP)
        image, labels = padded.crop(box), padded_labels.crop(box)
        if rng.random() < 0.5:
            image, labels = (p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in (image, labels))
        pixels = np.asarray(image, np.float32) - MEAN
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), torch.from_numpy(
            np.array(labels, np.int64)
        )


def usual(pairs: Sequence[folders.Pair], workers: int) -> Iterator:
    from torch.utils.data import DataLoader

    return iter(DataLoader(UsualDataset(pairs), batch_size=BATCH, num_workers=workers))


def compare_decoding(
    records: Sequence[tuple[bytes, bytes]], crops: loader.RandomCrops, images: int
) -> float:
    """In one thread, with the decoder in use; CPU seconds of a bare decode."""
    photographs = itertools.cycle([image for image, _ in records])
    pairs = itertools.cycle(records)
    kinds = {
        "  bare decode": map(decoding.decode_photograph, photographs),
        "  bare decode, with mask": (
            (decoding.decode_photograph(image), decoding.decode_labels(labels))
            for image, labels in pairs
        ),
        "  decode and augmentation": map(crops, itertools.count()),
    }
    print(decoding.decoder())
    return compare(kinds, images=images)[0][1]


def main(args: Args) -> None:
    dataset = builders.open_dataset(args.root, prepared_dir=args.prepared_dir, splits=[args.split])
    source = dataset.splits[args.split]
    number = min(args.photographs, len(source))
    records, part = read_records(source, number), Part(source, number)
    crops = loader.RandomCrops(part, 0, CROP, loader.by_the_paper(CROP, SCALES, mirror=True))
    print(f"{number} photographs, {os.cpu_count()} cores; the last column is over a bare decode")
    with with_pillow():
        bare = compare_decoding(records, crops, args.images)
    if decoding.cv2 is not None:
        bare = compare_decoding(records, crops, args.images)
    pairs = folders.read_split(builders.open_folder(args.root, args.prepared_dir), args.split)
    makers = {"our loader": partial(ours, part)}
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed (extra benchmark): no DataLoader to compare with")
    else:
        makers["DataLoader with Pillow"] = partial(usual, pairs[:number])
    for workers in args.workers:
        compare_loaders(makers, workers, args.images, bare)


def compare_loaders(
    makers: dict[str, Callable[[int], Iterator]], workers: int, images: int, bare: float
) -> None:
    """Whole batches from so many workers; with two loaders how many times faster ours is."""
    kinds = {f"{name}, {workers} workers": make(workers) for name, make in makers.items()}
    ahead = 2 * workers + 2  # a DataLoader has two batches a worker ready
    found = compare(kinds, images=images, each=BATCH, ahead=ahead, bare=bare)
    if len(found) == 2:
        (seconds, cpu), (other_seconds, other_cpu) = found
        print(
            f"  {other_seconds / seconds:.2f} times as fast, with 1/{other_cpu / cpu:.2f} the CPU"
        )
    next(iter(kinds.values())).close()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import cli

    main(cli.parse(Args, __doc__))
