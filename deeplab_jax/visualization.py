"""Pictures of photographs and labels; figures.py has those with axes.

Labels are drawn in `colors`, such as the data set's own, or those of `palette(class_names)`. Where
there is a legend, class ids stand in the regions and in the legend, so that a picture can be read
in grey. Everything returns RGB uint8 arrays or writes a file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from scipy import ndimage
from scipy.spatial.distance import pdist

from deeplab_jax.types import (
    IGNORE_LABEL,
    VOC_CLASS_NAMES,
    Array,
    Image,
    LabelMap,
    Photograph,
    UserError,
)

FONT_SIZE = 14
"""Pixels; larger on large photographs."""
ROW = FONT_SIZE + 8
GAP = 6

Palette = UInt8[np.ndarray, "256 3"]
"""An RGB colour of each class id, and of 255."""

MIN_DIFFERENCE = 16.0
"""Least distance of two classes' colours in RGB."""

DISTINCT = bytes.fromhex(
    "6666e6cc1a33008000e6991aff80cc00ffcc0099cccce64c666633804c66ff99801a9980991a99ccb2e6994c1a"
    "00e6ffb2006680e6803399ff4c6666ffcc8099b2669966b2e680ffb29999999900e6668099e6b280b2b2e66633"
    "1a66334c6699806600ffb2cc99ccffb29966e6e68000b266b299ff993333e6cc3399664c80b233ff4c994c6600"
    "ffb2ffcc80b29933804c4c99cc8080ff6666e6b2998080990066cccc803300ccb2e63366806666006680ccb24c"
    "00b2cc66996699b2ffcc664c99e6e6cc4cb2e6cccc1a8080808066b2331a8080cc804cb24cb233008033b280ff"
    "33b2ff66b2660080cc33664c33e699664c8033ccffb2b2ccb28000b2cc998099ccb2e680b2b2996699b29980b2"
    "cc660080cce64c80003380ffb21a4cb24c66b2809933cccc80993380803380ccb233b280ffb280e6cc99e699ff"
    "4c80331acc66ff994ccccc4ccce6991a6600ff99cc993366b200804c4cb2b266cc804c4ccc4c80669980cc4c4c"
    "cc994ccc99e6e6b21acc66b2ffccff99e666b2804ccc8066cc6666ff66cce6804ccce6e6ff80666680e6ff8080"
    "66e6b24c9933808080ffb2b2e6cce64c6680b2668099661a99b21a3366b2e68099b2e6cc99e699806680ffb266"
    "e64c33994c33806633ff9999cccc80b2b280b29980994c80666600804c1a996699b2cc66cc669980800066804c"
    "ffcc6600804cccb266b2e6ff998000b24c006699e6b2b2b2cc1a66ff80b24c990000993380664c994c4c998033"
    "b2b200cc804c66b2e6ff4c6666e6ccff66993380b24cb2b2ffb24cffb2e6b2990000cc99b26600b20033cc4c99"
    "b299b2b2b24c99cc80cc99ccccccffff66b233806699331ae6ccb2b2ccb2b28080cc80cc8066cc994c99ff99e6"
    "80cc66ff80e666b280809999cc0080ccb2ff66cc80b2cc4cffcc4cb2cce63399b2e6b280e6e64c668000b280e6"
    "b266e64cb24c1a6666ff6680668066ffb29900e6e6664c4c664c6680339980b24ccc9933668033009999ff9933"
    "99330066664c0066994c6633804c3380e6ff80804ce6b2b200ffb266cc996666b2666666338099804c8033661a"
)
"""255 colours; each is the farthest in CIELAB from those before it, from black, white and cream."""

WRONG = (214, 39, 40)
"""Colour of wrong pixels in `error_map`."""


def palette(
    class_names: Sequence[str] | None = None, class_colors: Sequence[Sequence[int]] | None = None
) -> Palette:
    """An RGB colour of each class id; 255 is VOC's cream.

    `class_colors`, one a class, are taken where no two are alike. Without them PASCAL VOC's
    classes, and classes without names, have VOC's colours. Other classes have colours that can be
    told apart, and a class 0 called background is black.

    >>> palette()[15].tolist()
    [192, 128, 128]
    """
    ids, colors = np.arange(256)[:, None], np.zeros((256, 3), np.uint8)
    for bit in range(8):  # VOC's: the bits of a class id, distributed over red, green and blue
        colors |= ((ids >> 3 * bit + np.arange(3) & 1) << (7 - bit)).astype(np.uint8)
    if class_names is None:
        return colors
    if class_colors and (pdist(np.array(class_colors)) >= MIN_DIFFERENCE).all():
        colors[: len(class_names)] = class_colors
    elif tuple(name.lower() for name in class_names) != VOC_CLASS_NAMES:
        first = int(class_names[0].lower() == "background")
        distinct = np.frombuffer(DISTINCT, np.uint8).reshape(-1, 3)
        colors[first:IGNORE_LABEL] = distinct[: IGNORE_LABEL - first]
    return colors


def default_bands(channels: int) -> tuple[int, ...]:
    """The bands that pictures show where none are named: the first three, or the first.

    >>> default_bands(1), default_bands(2), default_bands(4)
    ((0,), (0,), (0, 1, 2))
    """
    return (0, 1, 2) if channels >= 3 else (0,)


def show_bands(image: Photograph, bands: Sequence[int] | None = None) -> Image:
    """A picture of any number of channels as RGB: three of its `bands`, or one as grey."""
    bands = default_bands(image.shape[2]) if bands is None else bands
    if len(bands) not in (1, 3) or not all(0 <= band < image.shape[2] for band in bands):
        raise UserError(
            f"pictures show one band, or three as red, green and blue, of 0 to "
            f"{image.shape[2] - 1}, and {' '.join(map(str, bands))} was given"
        )
    shown = np.asarray(image)[..., list(bands)]
    return np.repeat(shown, 3, axis=2) if len(bands) == 1 else shown


def title_of_bands(channels: int, bands: Sequence[int] | None = None) -> str:
    """What stands over a photograph: of other channels than three, the bands that are shown."""
    bands = default_bands(channels) if bands is None else bands
    if channels == 3 and tuple(bands) == (0, 1, 2) or channels == 1:
        return "photograph"
    return f"band{'s' if len(bands) > 1 else ''} {', '.join(map(str, bands))}"


def colorize(labels: Integer[Array, "h w"], colors: Palette | None = None) -> Image:
    """Each class in its colour; 255 in VOC's cream."""
    colors = palette() if colors is None else colors
    return colors[np.asarray(labels).astype(np.uint8)]


def save_labels(path: Path, labels: LabelMap, colors: Palette | None = None) -> None:
    """Writes class ids as a palette PNG, as PASCAL VOC's own masks are."""
    picture = PILImage.fromarray(np.asarray(labels).astype(np.uint8), mode="P")
    picture.putpalette((palette() if colors is None else colors).tobytes())
    picture.save(path)


def error_map(image: Image, labels: LabelMap, truth: LabelMap) -> Image:
    """The photograph in pale grey, wrong pixels in red; white where the truth is 255."""
    grey = np.asarray(image, float).mean(-1, keepdims=True)
    picture = np.repeat(np.rint(128 + grey * 0.4), 3, axis=-1).astype(np.uint8)
    labels, truth = np.asarray(labels), np.asarray(truth)
    picture[labels != truth] = WRONG
    picture[truth == IGNORE_LABEL] = 255
    return picture


def overlay(
    image: Image,
    labels: LabelMap,
    *,
    class_names: Sequence[str] | None = None,
    colors: Palette | None = None,
    opacity: float = 0.55,
) -> UInt8[np.ndarray, "h_with_legend w 3"]:
    """The photograph with its classes laid over it; background (0) and 255 stay as they are
    where class 0 is called background or has no name.

    With `class_names` a legend of the classes that occur stands below, and their ids stand in
    the regions.
    """
    labels = np.asarray(labels)
    if labels.shape != np.shape(image)[:2]:
        raise UserError(
            f"labels must be class ids [rows, columns] of the photograph's size, "
            f"{np.shape(image)[:2]}, and {labels.shape} came; of probabilities give "
            "probs.argmax(-1)"
        )
    colors = palette(class_names) if colors is None else colors
    painted = labels != IGNORE_LABEL
    if class_names is None or class_names[0].lower() == "background":
        painted &= labels != 0
    mixed = (1 - opacity) * np.asarray(image, float) + opacity * colorize(labels, colors)
    picture = np.where(painted[..., None], np.rint(mixed), image).astype(np.uint8)
    if class_names is None:
        return picture
    present = [c for c in np.unique(labels[painted]).tolist() if c < len(class_names)]
    width = picture.shape[1]
    size = max(FONT_SIZE, width // 50)
    numbered = write_ids(picture, np.where(painted, labels, IGNORE_LABEL), font_size=size)
    below = legend(present, class_names, width=width, colors=colors, font_size=size)
    return np.concatenate([numbered, below])


def write_ids(
    picture: Image, labels: LabelMap, *, font_size: int = FONT_SIZE
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with class ids written where a region of `labels` is wide enough for them."""
    drawn = PILImage.fromarray(np.asarray(picture))
    draw, font = ImageDraw.Draw(drawn), ImageFont.load_default(font_size)
    step = max(font_size // FONT_SIZE, 1)  # every pixel of a large photograph would take seconds
    sampled = labels[::step, ::step]
    for c in np.unique(sampled[sampled != IGNORE_LABEL]).tolist():
        regions, count = cast(tuple[np.ndarray, int], ndimage.label(sampled == c))
        # Steps to the nearest pixel outside of the region, or of the picture.
        steps = np.asarray(ndimage.distance_transform_cdt(np.pad(regions, 1), "chessboard"))
        depth = steps[1:-1, 1:-1]
        for row, column in ndimage.maximum_position(depth, regions, range(1, count + 1)):
            if step * depth[row, column] > font_size:
                draw.text(
                    (step * column, step * row), str(c), "white", font,
                    anchor="mm", stroke_width=font_size // 7, stroke_fill="black",
                )  # fmt: skip
    return np.asarray(drawn)


def legend(
    classes: Sequence[int],
    class_names: Sequence[str],
    *,
    width: int,
    colors: Palette | None = None,
    font_size: int = FONT_SIZE,
) -> UInt8[np.ndarray, "h w 3"]:
    """A strip of swatches with ids and names, on as many lines as it takes; 255 is void."""
    colors = palette(class_names) if colors is None else colors
    font, height = ImageFont.load_default(font_size), font_size + 8
    names = {IGNORE_LABEL: "void"} | dict(enumerate(class_names))
    entries, x, y = [], 4, 0
    for c in dict.fromkeys(classes):
        text = f"{c} {names[c]}"
        step = height + int(font.getlength(text)) + 12
        if x > 4 and x + step > width + 4:
            x, y = 4, y + height
        entries.append((x, y, c, text))
        x += step
    strip = PILImage.new("RGB", (width, y + height), "white")
    draw = ImageDraw.Draw(strip)
    for x, y, c, text in entries:
        draw.rectangle((x, y + 4, x + font_size, y + 4 + font_size), tuple(colors[c].tolist()))
        draw.text((x + height, y + 2), text, "black", font)
    return np.asarray(strip)


def sheet(
    rows: Sequence[Sequence[Array]],
    class_names: Sequence[str],
    *,
    titles: Sequence[str] = ("photograph", "truth", "prediction"),
    captions: Sequence[str] | None = None,
    colors: Palette | None = None,
    side: int = 320,
) -> UInt8[np.ndarray, "h w 3"]:
    """Photographs beside label maps, such as the truth and a prediction, and a legend below.

    A row is an Image and then LabelMaps, or Images such as an `error_map`, of its size, one a
    title; they are scaled to fit `side` pixels. `captions` holds a line to stand above each row.
    """
    colors = palette(class_names) if colors is None else colors
    width = len(titles) * (side + GAP) - GAP
    strips = [_text_row(titles, side + GAP, width)]
    for number, (image, *maps) in enumerate(rows):
        if captions is not None:
            strips.append(_text_row([captions[number]], width, width))
        pictures = [_drawn(np.asarray(array), colors, side) for array in (image, *maps)]
        strip = np.full((pictures[0].shape[0] + GAP, width, 3), 255, np.uint8)
        for i, picture in enumerate(pictures):
            left = i * (side + GAP)
            strip[: picture.shape[0], left : left + picture.shape[1]] = picture
        strips.append(strip)
    seen = {c for row in rows for m in row if np.ndim(m) == 2 for c in np.unique(m).tolist()}
    classes = sorted(c for c in seen if c < len(class_names) or c == IGNORE_LABEL)
    return np.concatenate([*strips, legend(classes, class_names, width=width, colors=colors)])


def _drawn(array: np.ndarray, colors: Palette, side: int) -> Image:
    """A picture, or labels in their colours with their ids, scaled to fit `side` pixels."""
    factor = side / max(array.shape[:2])
    size = (round(array.shape[1] * factor), round(array.shape[0] * factor))
    how = PILImage.Resampling.BICUBIC if array.ndim == 3 else PILImage.Resampling.NEAREST
    scaled = np.asarray(PILImage.fromarray(array.astype(np.uint8)).resize(size, how))
    return scaled if array.ndim == 3 else write_ids(colorize(scaled, colors), scaled)


def _text_row(texts: Sequence[str], step: int, width: int) -> np.ndarray:
    """A white line with texts `step` pixels apart."""
    row = PILImage.new("RGB", (width, ROW), "white")
    font = ImageFont.load_default(FONT_SIZE)
    for i, text in enumerate(texts):
        ImageDraw.Draw(row).text((i * step + 4, 2), text, "black", font)
    return np.asarray(row)
