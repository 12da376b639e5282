"""A data set drawn by code: textured things of five kinds that overlap on a cloudy ground.

All have colours from one distribution and lie anywhere, so neither colour nor position tells the
class. Kinds differ in shape, texture and scale: a network with a large field of view can tell them
apart, a classifier of single pixels cannot. A band of 255 runs along every outline.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image
from scipy import ndimage

from deeplab_jax.data import prepare
from deeplab_jax.types import IGNORE_LABEL, UserError

Plane = Float32[np.ndarray, "h w"]

VOID_HALF_WIDTH = 1.5
"""Pixels on either side of an outline that do not count."""


class Thing(NamedTuple):
    """A kind of thing; radius and period are drawn from ranges in pixels."""

    name: str
    outline: str
    texture: str
    radius: tuple[int, int]
    period: tuple[int, int]
    share: float
    """How often it is drawn, relative to the others: small things more often."""


def triangle(x: Plane, y: Plane) -> Plane:
    """Of equal sides."""
    side = np.float32(np.sqrt(3) / 2)
    return np.maximum(np.maximum(side * x - y / 2, -side * x - y / 2), y) - np.float32(0.5)


def star(x: Plane, y: Plane) -> Plane:
    """Five points with notches at half the radius."""
    half_sector = np.float32(np.pi / 5)
    angle = np.abs((np.arctan2(x, y) + half_sector) % (2 * half_sector) - half_sector)
    r = np.hypot(x, y)
    tip, notch = np.array([1, 0]), 0.5 * np.array([np.cos(half_sector), np.sin(half_sector)])
    along = (notch - tip) / np.hypot(*(notch - tip))
    # Distance to the line from tip to notch, in the half sector that holds the point.
    inside = (r * np.cos(angle) - tip[0]) * along[1] - (r * np.sin(angle) - tip[1]) * along[0]
    return inside.astype(np.float32)


OUTLINES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "disc": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - np.float32(0.8),
    "triangle": triangle,
    "star": star,
}
"""Distance to the outline of radius 1 around the origin, negative inside."""

TEXTURES: dict[str, Callable[[Plane, Plane, np.float32], Plane]] = {
    "stripes": lambda x, y, k: 1.5 * np.sin(k * x),
    "rings": lambda x, y, k: 1.5 * np.sin(k * np.hypot(x, y)),
    "checks": lambda x, y, k: 2 * np.sin(k * x) * np.sin(k * y),
    "dots": lambda x, y, k: 1.5 * (np.cos(k * x) + np.cos(k * y) - 0.4),
}
"""How two colours mix with k radians a pixel: the first up to -0.5, the second from 0.5 on."""

THINGS = (
    Thing("coin", "disc", "rings", radius=(14, 20), period=(6, 8), share=2.5),
    Thing("wheel", "disc", "rings", radius=(30, 42), period=(14, 18), share=0.8),
    Thing("tent", "triangle", "stripes", radius=(26, 46), period=(7, 10), share=1.4),
    Thing("crate", "square", "checks", radius=(22, 38), period=(16, 22), share=1.0),
    Thing("star", "star", "dots", radius=(28, 48), period=(7, 9), share=1.4),
)

CLASS_NAMES = ("ground", *(thing.name for thing in THINGS))

PALETTE = bytes.fromhex("000000 d62728 2ca02c 1f77b4 e6b800 9467bd")
"""Red, green and blue of the masks' palette, in the order of CLASS_NAMES."""

VERSION = 1
"""Increase it when the same seed draws another picture."""

NUM_VAL, SIDE = 100, 128
"""Scenes of the val split of a run that draws its own, and their rows and columns."""

DESCRIPTION = "scenes.json"


def draw_scene(
    rng: np.random.Generator, *, size: int = 128
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """A picture and its labels, of `size` pixels a side."""
    canvas = draw_ground(rng, size)
    labels = np.zeros((size, size), np.uint8)
    shares = np.array([thing.share for thing in THINGS])
    number = max(1, round(rng.uniform(4, 8) * (size / 128) ** 2))
    kinds = rng.choice(len(THINGS), size=number, p=shares / shares.sum())
    radii = [rng.uniform(*THINGS[kind].radius) for kind in kinds]
    for i in np.argsort(radii)[::-1]:  # small things lie on large ones
        draw_thing(rng, canvas, labels, int(kinds[i]), radii[i])
    canvas += rng.normal(0, 4, canvas.shape).astype(np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8), labels


def draw_ground(rng: np.random.Generator, size: int) -> Float32[np.ndarray, "size size 3"]:
    """Clouds of two colours."""
    first, second = two_colours(rng)
    coarse = rng.random((3 + size // 32, 3 + size // 32)).astype(np.float32)
    clouds = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    clouds = np.clip(1.6 * clouds - 0.3, 0, 1)[..., None]
    return first + clouds * (second - first)


def draw_thing(
    rng: np.random.Generator,
    canvas: Float32[np.ndarray, "size size 3"],
    labels: UInt8[np.ndarray, "size size"],
    kind: int,
    radius: float,
) -> None:
    """Paint one thing, its shadow and its outline over what is there."""
    thing, size = THINGS[kind], len(labels)
    middle = rng.uniform(0, size, 2)
    reach = radius + 8  # the shadow, too
    top, left = np.maximum(np.floor(middle - reach), 0).astype(int)
    bottom, right = np.minimum(np.ceil(middle + reach), size).astype(int)
    window = (slice(top, bottom), slice(left, right))
    x, y = turned_grid(rng, np.arange(left, right) - middle[1], np.arange(top, bottom) - middle[0])
    outline = radius * OUTLINES[thing.outline](x / np.float32(radius), y / np.float32(radius))
    first, second = two_colours(rng)
    k = np.float32(2 * np.pi / rng.uniform(*thing.period))
    mix = np.clip(0.5 + TEXTURES[thing.texture](x, y, k), 0, 1)[..., None]
    cover = np.clip(0.5 - outline, 0, 1)[..., None]
    shadow = 1 - 0.45 * np.exp(-np.maximum(outline, 0) / 3)[..., None]
    surface = first + mix * (second - first)
    canvas[window] = (1 - cover) * canvas[window] * shadow + cover * surface
    labels[window][outline < 0] = kind + 1
    labels[window][np.abs(outline) <= VOID_HALF_WIDTH] = IGNORE_LABEL


def unsure_probs(
    labels: UInt8[np.ndarray, "h w"], rng: np.random.Generator
) -> Float32[np.ndarray, "h w c"]:
    """What an unsure network could give for a scene: its labels at stride 8, one block in eight of
    them wrong, blurred."""
    coarse = np.where(labels == IGNORE_LABEL, 0, labels)[::8, ::8].copy()
    wrong = rng.random(coarse.shape) < 1 / 8
    coarse[wrong] = rng.integers(0, len(CLASS_NAMES), wrong.sum())
    votes = np.eye(len(CLASS_NAMES))[coarse].repeat(8, 0).repeat(8, 1)
    soft = ndimage.gaussian_filter(votes, (5, 5, 0)) + 0.02
    return (soft / soft.sum(-1, keepdims=True)).astype(np.float32)


def turned_grid(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[Plane, Plane]:
    """Coordinates of a grid in a frame turned by a random angle."""
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y = x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]
    return cos * x + sin * y, cos * y - sin * x


def two_colours(rng: np.random.Generator) -> Float32[np.ndarray, "2 3"]:
    """RGB 0..255, one dark and one light, in random order."""
    dark = rng.uniform(20, 120, 3)
    light = dark + rng.uniform(70, 135, 3)
    colours = np.stack([dark, light]).astype(np.float32)
    return colours[:: rng.choice((-1, 1))]


def write_scenes(root: Path, *, num_train: int, num_val: int, size: int, seed: int) -> None:
    """Draw a data set in VOC layout with splits `train` and `val`, where it is not there. No two
    scenes of any split or seed share random numbers. A UserError where `root` has other files."""
    arguments = {"num_train": num_train, "num_val": num_val, "size": size, "seed": seed}
    description = json.dumps({"scenes": VERSION, **arguments})
    told = root / DESCRIPTION
    with prepare.locked(root.with_name(f"{root.name}.lock")):
        if told.is_file() and told.read_text() == description:
            return
        if root.exists() and not told.is_file() and (root.is_file() or any(root.iterdir())):
            raise UserError(f"{root} holds other things than drawn scenes; choose another folder.")
        with prepare.unfinished(root) as folder:
            write_folder(folder, {"train": num_train, "val": num_val}, size=size, seed=seed)
            (folder / DESCRIPTION).write_text(description)
            shutil.rmtree(root, ignore_errors=True)
            folder.rename(root)


def write_folder(root: Path, splits: dict[str, int], *, size: int, seed: int) -> None:
    """Draws scenes of `size` x `size` pixels into a VOC folder: `splits` has their numbers."""
    lists = root / "ImageSets" / "Segmentation"
    for folder in (lists, root / "JPEGImages", root / "SegmentationClass"):
        folder.mkdir(parents=True)
    (root / "labels.txt").write_text("".join(f"{i} {n}\n" for i, n in enumerate(CLASS_NAMES)))
    for stream, (split, number) in enumerate(splits.items()):
        names = [f"{split}_{i:05d}" for i in range(number)]
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for i, name in enumerate(names):
            image, labels = draw_scene(np.random.default_rng((seed, stream, i)), size=size)
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            mask = Image.fromarray(labels)
            mask.putpalette(PALETTE.ljust(3 * 256, b"\xff"))
            mask.save(root / "SegmentationClass" / f"{name}.png")
