"""Time the CRF against pydensecrf, in one process, alternating, on photographs in VOC layout.

    python experiments/benchmarks/crf.py --data data/voc2012_animals
    python experiments/benchmarks/crf.py --data data/voc2012_animals --part distinct

375x500 photographs, 21 labels, 10 iterations, construction of the lattices included on both
sides; medians of `--repeats` rounds. Beside seconds on the clock stand CPU seconds of all cores,
which other work on the machine changes less. `distinct` is for a process of its own: a cold start,
or a cached one where JAX_COMPILATION_CACHE_DIR is set and the command was given before. Expected
on two cores: see the table in deeplab_jax/crf/README.md.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import crf_pydensecrf
import jax
import numpy as np
from PIL import Image

from deeplab_jax import crf
from deeplab_jax.crf import kernels, refinement
from deeplab_jax.crf.features import appearance_features, pixels_of
from deeplab_jax.types import IGNORE_LABEL

Part = Literal["distinct", "memory", "large", "steady", "batch"]
NUM_LABELS = 21
SIZE = (375, 500)


@dataclass(frozen=True)
class Args:
    data: Path
    """Folder in VOC layout."""
    split: str = "train"
    photographs: int = 12
    """Photographs of 375x500; the smoothest and the most textured of the split are among them."""
    repeats: int = 5
    distinct: int = 30
    """Photographs of distinct sizes, refined one after another."""
    part: tuple[Part, ...] = ("steady", "batch", "memory", "large")
    """What to measure."""


def photograph(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    image = np.array(Image.open(data / "JPEGImages" / f"{name}.jpg").convert("RGB"))
    labels = np.array(Image.open(data / "SegmentationClass" / f"{name}.png"))
    return image, np.where(labels == IGNORE_LABEL, 0, labels)


def unsure(labels: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities of at most 0.7 from a coarse annotation with a fifth of its blocks wrong."""
    rng = np.random.default_rng(seed)
    coarse = labels[::8, ::8].copy()
    for y in range(0, coarse.shape[0], 4):
        for x in range(0, coarse.shape[1], 4):
            if rng.random() < 0.2:
                coarse[y : y + 4, x : x + 4] = rng.integers(NUM_LABELS)
    one_hot = (coarse[..., None] == np.arange(NUM_LABELS)).astype(np.float32)
    blurred = np.asarray(jax.image.resize(one_hot, (*labels.shape, NUM_LABELS), "linear"))
    return 0.65 * blurred + np.float32(0.35 / NUM_LABELS)


def names(args: Args) -> list[str]:
    path = args.data / "ImageSets" / "Segmentation" / f"{args.split}.txt"
    return path.read_text().split()


def appearance_lattice(image: np.ndarray):
    points = pixels_of(np.ones((1, *image.shape[:2]), bool))
    return kernels.host_lattice(
        appearance_features(image[None], crf.RESNET101), *points, "symmetric"
    )


def choose(args: Args) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Photographs of SIZE with their number of vertices, smoothest first."""
    found = []
    for seed, name in enumerate(names(args)):
        image, labels = photograph(args.data, name)
        if image.shape[:2] == SIZE:
            found.append((int(appearance_lattice(image).num_vertices), image, unsure(labels, seed)))
    found.sort(key=lambda item: item[0])
    spread = np.linspace(0, len(found) - 1, args.photographs).astype(int)
    return [found[i] for i in spread]


def timed(function, *args, **kwargs) -> tuple[np.ndarray, Any]:
    """Seconds on the clock and of all cores, and the result."""
    start = np.array([time.perf_counter(), time.process_time()])
    result = jax.block_until_ready(function(*args, **kwargs))
    return np.array([time.perf_counter(), time.process_time()]) - start, result


def ours_in_parts(image: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Construction and inference; the smoothness kernel is kept, as in `refine`."""
    pixels = (1, *image.shape[:2]), bytes([1]) * image[..., 0].size
    smoothness = refinement.smoothness_kernel(*pixels, 1.0, "symmetric", None, False)
    construction, appearance = timed(appearance_lattice, image)
    padding = appearance.num_points - image[..., 0].size
    rows = np.pad(probs.reshape(-1, NUM_LABELS), ((0, padding), (0, 0)), constant_values=1)
    terms = [appearance, smoothness], [4.0, 3.0], 10
    return construction, timed(kernels.run_iterations, rows, *terms, probs=True)[0]


def theirs_in_parts(image: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    construction, model = timed(crf_pydensecrf.construct, image, probs)
    return construction, timed(model.inference, 10)[0]


def steady(args: Args) -> list[dict]:
    """Medians for each photograph, warm."""
    rows = []
    keys = ("ours", "theirs", "construct", "infer", "their_construct", "their_infer")
    for vertices, image, probs in choose(args):
        crf.refine(image, probs)
        rounds = []
        for _ in range(args.repeats):
            ours, marginals = timed(crf.refine, image, probs)
            theirs, expected = timed(crf.refine, image, probs, backend="pydensecrf")
            parts = *ours_in_parts(image, probs), *theirs_in_parts(image, probs)
            rounds.append((ours, theirs, *parts))
        row = dict(zip(keys, np.median(rounds, axis=0).tolist(), strict=True))
        row["vertices_per_pixel"] = vertices / (SIZE[0] * SIZE[1])
        row["difference"] = float(np.abs(marginals - expected).max())
        row["labels_differ"] = int((marginals.argmax(-1) != expected.argmax(-1)).sum())
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def batch(args: Args) -> dict:
    """A batch of 8 photographs against pydensecrf one by one."""
    chosen = choose(args)[:: max(1, args.photographs // 8)][:8]
    images = np.stack([image for _, image, _ in chosen])
    probs = np.stack([probs for _, _, probs in chosen])
    crf.refine_batch(images, probs)
    rounds = []
    for _ in range(args.repeats):
        ours, _ = timed(crf.refine_batch, images, probs)
        theirs = sum(sum(theirs_in_parts(*pair)) for pair in zip(images, probs, strict=True))
        rounds.append((ours, theirs))
    return dict(zip(("ours", "theirs"), np.median(rounds, axis=0).tolist(), strict=True))


def distinct(args: Args) -> dict:
    """Sums up to each photograph, which both sides refine in turn, compiles included."""
    pairs = {}
    for name in names(args):
        image, labels = photograph(args.data, name)
        pairs.setdefault(image.shape, (image, labels))
    chosen = [(image, unsure(labels, 0)) for image, labels in list(pairs.values())[: args.distinct]]
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiles.append(seconds) if "backend_compile" in event else None
    )
    ours, theirs, counts = [], [], []
    for pair in chosen:
        ours.append(timed(crf.refine, *pair)[0])
        theirs.append(sum(theirs_in_parts(*pair)))
        counts.append(len(compiles))
    return {
        "ours": np.cumsum(ours, axis=0).tolist(),
        "theirs": np.cumsum(theirs, axis=0).tolist(),
        "programs": counts,
    }


def memory(args: Args) -> dict:
    """Peak memory of each side's process, in GiB; the other side is never loaded in it."""
    pairs = (photograph(args.data, name) for name in names(args))
    image, labels = next(pair for pair in pairs if pair[0].shape[:2] == SIZE)
    figures = {}
    for num_labels, size in ((NUM_LABELS, SIZE), (32, (1000, 1000))):
        enlarged = np.array(Image.fromarray(image).resize(size[::-1]))
        mask = np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
        probs = np.full((*size, num_labels), 0.4 / num_labels, np.float32)
        np.put_along_axis(probs, mask[..., None].astype(int), 0.6 + 0.4 / num_labels, axis=-1)
        with tempfile.TemporaryDirectory() as folder:
            arrays = Path(folder) / "arrays.npz"
            np.savez(arrays, image=enlarged, probs=probs)
            command = [sys.executable, str(Path(__file__).with_name("crf_pydensecrf.py"))]
            figures[f"{size[0]}x{size[1]}, {num_labels} labels"] = {
                side: json.loads(subprocess.check_output([*command, side, arrays]))
                for side in ("ours", "theirs")
            }
    return figures


def large(args: Args) -> dict:
    """Masks of a phone's photographs, refined at the scale of a million pixels."""
    image, labels = photograph(args.data, names(args)[0])
    figures = {}
    for name, size in (("12 megapixels", (4000, 3000)), ("48 megapixels", (8000, 6000))):
        enlarged = np.array(Image.fromarray(image).resize(size))
        mask = np.array(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        figures[name] = [
            timed(crf.refine_labels, enlarged, mask, max_pixels=1_000_000)[0].tolist()
            for _ in range(2)
        ]
    return figures


def line(name: str, ours: Any, theirs: Any) -> str:
    """A line of the table from pairs of seconds on the clock and of all cores."""
    wall, cpu = np.divide(ours, theirs)
    return (
        f"| {name} | {ours[0]:.2f} s | {theirs[0]:.2f} s | {wall:.2f} "
        f"| {ours[1]:.2f} s | {theirs[1]:.2f} s | {cpu:.2f} |"
    )


def table(figures: dict) -> str:
    lines = ["| | ours | pydensecrf | ratio | ours, CPU | pydensecrf, CPU | ratio |"]
    lines.append("|---|---|---|---|---|---|---|")
    if rows := figures.get("steady"):
        for name, *keys in [
            ("end to end", "ours", "theirs"),
            ("construction", "construct", "their_construct"),
            ("inference", "infer", "their_infer"),
        ]:
            lines.append(line(name, *(np.median([row[k] for row in rows], axis=0) for k in keys)))
        lines.append(line("smoothest photograph", rows[0]["ours"], rows[0]["theirs"]))
        lines.append(line("most textured photograph", rows[-1]["ours"], rows[-1]["theirs"]))
    if "batch" in figures:
        lines.append(line("batch of 8", figures["batch"]["ours"], figures["batch"]["theirs"]))
    if found := figures.get("distinct"):
        total = len(found["ours"])
        for number in sorted({1, min(20, total), total}):
            sums = [found[side][number - 1] for side in ("ours", "theirs")]
            lines.append(line(f"{number} sizes, {found['programs'][number - 1]} programs", *sums))
    for name, sides in figures.get("memory", {}).items():
        ours, theirs = sides["ours"], sides["theirs"]
        lines.append(
            f"| peak memory, {name} | {ours:.2f} GiB | {theirs:.2f} GiB "
            f"| {ours / theirs:.2f} | | | |"
        )
    for name, (first, second) in figures.get("large", {}).items():
        lines.append(f"| {name}, mask | {first[0]:.1f} s, then {second[0]:.1f} s | | | | | |")
    return "\n".join(lines)


def main(args: Args) -> None:
    run = {"distinct": distinct, "memory": memory, "large": large, "steady": steady, "batch": batch}
    print(table({part: run[part](args) for part in args.part}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import cli

    main(cli.parse(Args, __doc__))
