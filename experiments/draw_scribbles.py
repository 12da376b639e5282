"""Draw scribbles from masks: a few pixels of each object, 255 elsewhere, as weak supervision.

    python experiments/draw_scribbles.py camvid/SegmentationClass scribbles
    python experiments/train_voc.py small --data.root camvid --data.train-masks scribbles \
        --batch-loss dense_crf --crf-loss.weight 2e-8

Each connected region of at least --min-pixels gets a stroke along a path of random steps that
stays inside it. The same seed draws the same scribbles.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cli
import numpy as np
import tyro
from PIL import Image
from scipy import ndimage

from deeplab_jax.types import IGNORE_LABEL


@dataclass(frozen=True)
class Options:
    masks: Annotated[Path, tyro.conf.Positional]
    """Folder of PNGs with class ids."""
    output: Annotated[Path, tyro.conf.Positional]
    """Folder of the scribbles, under the same names."""
    min_pixels: int = 200
    """Smaller regions get none."""
    length: float = 1.0
    """Length of a stroke over the square root of its region's pixels."""
    width: int = 3
    """Width of a stroke in pixels."""
    seed: int = 0


def stroke(region: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A path of `length` steps that starts deep inside the region and turns at its border."""
    depth = ndimage.distance_transform_edt(region)
    deep = np.argwhere(depth >= 0.6 * depth.max())
    position, path = deep[rng.integers(len(deep))].astype(float), np.zeros_like(region)
    direction = rng.uniform(0, 2 * np.pi)
    for _ in range(length):
        path[tuple(position.astype(int))] = True
        direction += rng.normal(0, 0.15)
        step = position + [np.sin(direction), np.cos(direction)]
        inside = (step >= 0).all() and (step < region.shape).all()
        if inside and depth[tuple(step.astype(int))] > 2:
            position = step
        else:
            direction += rng.uniform(0.5, 1.5) * np.pi
    return path


def scribbles(labels: np.ndarray, options: Options, rng: np.random.Generator) -> np.ndarray:
    """Class ids on the strokes, IGNORE_LABEL elsewhere."""
    result = np.full_like(labels, IGNORE_LABEL)
    for label in np.setdiff1d(labels, IGNORE_LABEL):
        regions, count = ndimage.label(labels == label)
        for number, box in enumerate(ndimage.find_objects(regions, count), 1):
            region = np.pad(regions[box] == number, 1)
            pixels = int(region.sum())
            if pixels < options.min_pixels:
                continue
            path = stroke(region, round(options.length * pixels**0.5), rng)
            path = ndimage.binary_dilation(path, np.ones((options.width,) * 2)) & region
            result[box][path[1:-1, 1:-1]] = label
    return result


def main(options: Options) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    paths, shares = sorted(options.masks.glob("*.png")), []
    for number, path in enumerate(cli.progress(paths, what="drawn", unit="masks")):
        rng = np.random.default_rng([options.seed, number])
        found = scribbles(np.array(Image.open(path)), options, rng)
        Image.fromarray(found).save(options.output / path.name)
        shares.append((found != IGNORE_LABEL).mean())
    print(f"{len(shares)} masks, {np.mean(shares):.1%} of their pixels: {options.output}")


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
