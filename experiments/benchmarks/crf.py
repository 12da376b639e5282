"""Time the CRF against pydensecrf, in one process, alternating, on photographs in VOC layout.

    python experiments/benchmarks/crf.py --data data/voc2012_animals

375x500 photographs, 21 labels, 10 iterations, construction of the lattices included on both
sides; medians of `--repeats` rounds. Cold starts and peak memory run in processes of their own.
Expected on two cores: see "Agreement and speed" in deeplab_jax/crf/README.md.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from PIL import Image

from deeplab_jax import crf
from deeplab_jax.crf import inference, kernels, refinement
from deeplab_jax.types import IGNORE_LABEL

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
    """Photographs of distinct sizes for the run in a fresh process."""
    part: str = "all"
    """"steady", "batch", "cold", "distinct", or all of them."""
    result: Path | None = None
    """Where to leave the figures as JSON."""


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


def appearance_vertices(image: np.ndarray):
    pixels = refinement.host_pixels(image[None], np.ones((1, *image.shape[:2]), bool))
    features = inference.appearance_features(pixels, crf.RESNET101)
    return kernels.count_vertices(features, pixels.valid, pixels.image)


def num_vertices(image: np.ndarray) -> int:
    return int(appearance_vertices(image).num_vertices)


def choose(args: Args) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Photographs of SIZE with their number of vertices, smoothest first."""
    found = []
    for seed, name in enumerate(names(args)):
        image, labels = photograph(args.data, name)
        if image.shape[:2] == SIZE:
            found.append((num_vertices(image), image, unsure(labels, seed)))
    found.sort(key=lambda item: item[0])
    spread = np.linspace(0, len(found) - 1, args.photographs).astype(int)
    return [found[i] for i in spread]


def timed(function, *args, **kwargs) -> tuple[float, object]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args, **kwargs))
    return time.perf_counter() - start, result


def ours_in_parts(image: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    """Seconds of construction and of inference; the smoothness kernel is kept, as in `refine`."""
    valid = np.ones((1, *image.shape[:2]), bool)
    smoothness = refinement.smoothness_kernel(valid.shape, valid.tobytes(), 1.0, "symmetric")

    def construct():
        return kernels.tight_kernel(appearance_vertices(image), "symmetric")

    construction, appearance = timed(construct)
    padding = appearance.vertex.shape[1] - probs[..., 0].size
    flat = np.pad(probs.reshape(-1, NUM_LABELS), ((0, padding), (0, 0)), constant_values=1)
    lattices, weights = [appearance, smoothness], [4.0, 3.0]
    seconds, _ = timed(refinement.infer, flat, lattices, weights, num_iterations=10)
    return construction, seconds


def theirs_in_parts(image: np.ndarray, probs: np.ndarray) -> tuple[float, float]:
    from pydensecrf import densecrf

    unary = np.ascontiguousarray(-np.log(probs.reshape(-1, NUM_LABELS)).T)
    start = time.perf_counter()
    model = densecrf.DenseCRF2D(image.shape[1], image.shape[0], NUM_LABELS)
    model.setUnaryEnergy(unary)
    model.addPairwiseGaussian(sxy=1, compat=3)
    model.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    constructed = time.perf_counter()
    model.inference(10)
    return constructed - start, time.perf_counter() - constructed


def steady(args: Args) -> list[dict]:
    """Medians for each photograph, warm."""
    rows = []
    for vertices, image, probs in choose(args):
        crf.refine(image, probs)
        rounds = []
        for _ in range(args.repeats):
            ours, marginals = timed(crf.refine, image, probs)
            theirs, expected = timed(crf.refine, image, probs, backend="pydensecrf")
            rounds.append(
                (ours, theirs, *ours_in_parts(image, probs), *theirs_in_parts(image, probs))
            )
        keys = ("ours", "theirs", "construct", "infer", "their_construct", "their_infer")
        row = dict(zip(keys, np.median(rounds, axis=0).tolist(), strict=True))
        row["vertices_per_pixel"] = vertices / (SIZE[0] * SIZE[1])
        row["difference"] = float(np.abs(marginals - expected).max())
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
        one_by_one = sum(timed(crf.refine, *pair)[0] for pair in zip(images, probs, strict=True))
        theirs = sum(sum(theirs_in_parts(*pair)) for pair in zip(images, probs, strict=True))
        rounds.append((ours, one_by_one, theirs))
    keys = ("batch", "one_by_one", "theirs")
    return dict(zip(keys, np.median(rounds, axis=0).tolist(), strict=True))


def cold(args: Args) -> dict:
    """The first call of a process, what it pays for compilation, and peak memory."""
    image, labels = next(
        pair
        for pair in (photograph(args.data, n) for n in names(args))
        if pair[0].shape[:2] == SIZE
    )
    probs = unsure(labels, 0)
    first, _ = timed(crf.refine, image, probs)
    second, _ = timed(crf.refine, image, probs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"first": first, "second": second, "compile": first - second, "peak_gib": peak}


def distinct(args: Args) -> dict:
    """Photographs of distinct sizes one after another, compiles included, from a fresh process."""
    pairs = {}
    for name in names(args):
        image, labels = photograph(args.data, name)
        pairs.setdefault(image.shape, (image, labels))
    chosen = [(image, unsure(labels, 0)) for image, labels in list(pairs.values())[: args.distinct]]
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiles.append(seconds) if "backend_compile" in event else None
    )
    ours = sum(timed(crf.refine, *pair)[0] for pair in chosen)
    theirs = sum(sum(theirs_in_parts(*pair)) for pair in chosen)
    counts = {"photographs": len(chosen), "compiles": len(compiles), "compiling": sum(compiles)}
    return {"ours": ours, "theirs": theirs, **counts}


def in_a_fresh_process(args: Args, part: str, **environment: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--data", args.data, "--split", args.split]
        command += ["--part", part, "--result", result, "--distinct", str(args.distinct)]
        subprocess.run(command, check=True, env=os.environ | environment)
        return json.loads(result.read_text())[part]


def table(figures: dict) -> str:
    lines = ["| | ours | pydensecrf | ratio |", "|---|---|---|---|"]

    def line(name, ours, theirs):
        lines.append(f"| {name} | {ours:.2f} s | {theirs:.2f} s | {ours / theirs:.2f} |")

    rows = figures["steady"]
    for name, ours, theirs in [
        ("end to end", "ours", "theirs"),
        ("construction", "construct", "their_construct"),
        ("inference", "infer", "their_infer"),
    ]:
        line(name, *(np.median([row[key] for row in rows]) for key in (ours, theirs)))
    line("smoothest photograph", rows[0]["ours"], rows[0]["theirs"])
    line("most textured photograph", rows[-1]["ours"], rows[-1]["theirs"])
    line("batch of 8", figures["batch"]["batch"], figures["batch"]["theirs"])
    different = figures["distinct"]
    name = f"{different['photographs']} sizes, {different['compiles']} compiles"
    line(name, different["ours"], different["theirs"])
    first, again = figures["cold"], figures["cached"]
    lines.append(f"| cold compile | {first['compile']:.1f} s | | |")
    lines.append(f"| the same from the compilation cache | {again['compile']:.1f} s | | |")
    lines.append(f"| peak memory of the process | {first['peak_gib']:.2f} GiB | | |")
    return "\n".join(lines)


def main(args: Args) -> None:
    parts = {"steady": steady, "batch": batch, "cold": cold, "distinct": distinct}
    if args.part != "all":
        figures = {args.part: parts[args.part](args)}
        print(json.dumps(figures))
    else:
        with tempfile.TemporaryDirectory() as cache:
            cached = {
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }
            figures = {"cold": in_a_fresh_process(args, "cold", **cached)}
            figures["cached"] = in_a_fresh_process(args, "cold", **cached)
        figures["distinct"] = in_a_fresh_process(args, "distinct")
        figures["steady"], figures["batch"] = steady(args), batch(args)
        print(table(figures))
    if args.result is not None:
        args.result.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Args))
