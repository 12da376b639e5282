"""From photographs to probabilities and scores.

`predict` takes one photograph of any size and gives probabilities; `evaluate` runs over a
split on all local devices and gives its confusion matrix.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Integer, UInt8
from PIL import Image as PILImage

from deeplab_jax import metrics
from deeplab_jax.models import layers
from deeplab_jax.models.deeplab import OUTPUT_STRIDE, DeepLabV2, make_inputs
from deeplab_jax.types import Image, LabelMap, Probs, UserError

Variables = Any
What = Literal["probs", "labels"]
Window = tuple[slice, slice]

MAX_PIXELS = 2**20
"""Photographs with more are predicted in tiles. ResNet-101 with MSC takes about 3 GiB at it."""

SIDE_STEP = 128
"""Programs are compiled for sides 128 k + 1, which every smaller photograph is run in. The sides
of VOC's photographs, at most 500, then need a handful; 375 x 500 becomes 385 x 513."""

OVERLAP = 0.25
"""Part of its side that a tile shares with the next; the paper gives none (Section 4.4)."""


@partial(jax.jit, static_argnames=("model", "scales", "flip", "what"))
def batch_outputs(
    model: DeepLabV2,
    variables: Variables,
    image: UInt8[jax.Array, "b h w 3"],
    sizes: Int[jax.Array, "b 2"],
    canvas: Int[jax.Array, "b 2"] | None = None,
    *,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    what: What = "probs",
) -> Float[jax.Array, "b h w c"] | Integer[jax.Array, "b h w"]:
    """Probabilities (float32) or their argmax (uint8) at the size of the padded photographs.

    `sizes` holds the rows and columns of each photograph; beyond them the network sees the
    mean pixel, which is zero. `canvas` holds those the network is run at, all of the array
    where it is None: what lies beyond changes nothing, so that one program does for photographs
    of many sizes. Outputs of several `scales`, and of the mirrored photographs with `flip`, are
    averaged as probabilities.
    """
    inputs = layers.erase(make_inputs(image, model.mean_bgr), sizes)
    outputs = []
    for scale in scales:
        scaled = layers.rescale(inputs, scale, alignment=model.alignment, sizes=canvas)
        after = partial(layers.scaled_size, factor=scale, alignment=model.alignment)
        part = jax.tree.map(after, canvas)
        for mirrored in (False, True) if flip else (False,):
            view = layers.mirror(scaled, part) if mirrored else scaled
            logits = model.apply(
                variables,
                view,
                image.shape[1:3],
                sizes=part,
                new_sizes=canvas,
                method=DeepLabV2.full_size,
            )
            outputs.append(layers.mirror(logits, canvas) if mirrored else logits)
    if what == "labels" and len(outputs) == 1:
        return outputs[0].argmax(-1).astype(jnp.uint8)
    probs = sum(jax.nn.softmax(logits) for logits in outputs) / len(outputs)
    return probs.argmax(-1).astype(jnp.uint8) if what == "labels" else probs


def padded_size(model: DeepLabV2, size: tuple[int, int], pad_to: int | None) -> tuple[int, int]:
    """Rows and columns of the canvas: what the network is run at.

    At least `pad_to` where that is given (Section 4.1: 513). With aligned corners the size is
    raised to the next one that closes over the network's scales, 8k + 1 or 32k + 1.
    """
    rows, columns = (max(n, pad_to or n) for n in size)
    if model.alignment == "half_pixel":
        return rows, columns
    step = 4 * OUTPUT_STRIDE if len(model.scales) > 1 else OUTPUT_STRIDE
    return tuple(-(-(n - 1) // step) * step + 1 for n in (rows, columns))


def array_size(model: DeepLabV2, size: tuple[int, int], pad_to: int | None) -> tuple[int, int]:
    """Rows and columns of the array that the canvas lies in: the canvas of `pad_to`, or few others.

    >>> array_size(DeepLabV2(), (375, 500), None), array_size(DeepLabV2(), (375, 500), 513)
    ((385, 513), (513, 513))
    """
    canvas = padded_size(model, size, pad_to)
    if _fits(size, pad_to):
        return canvas
    return tuple(-(-(n - 1) // SIDE_STEP) * SIDE_STEP + 1 for n in canvas)


def _fits(size: tuple[int, int], pad_to: int | None) -> bool:
    return pad_to is not None and max(size) <= pad_to


def predict(
    model: DeepLabV2,
    variables: Variables,
    image: Image,
    *,
    pad_to: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlap: float = OVERLAP,
    max_pixels: int = MAX_PIXELS,
) -> Probs:
    """Class probabilities of one photograph, NumPy float32 `[h, w, classes]`.

    A photograph that a square of side `tile` does not cover is predicted in such tiles, which
    share at least `overlap` of their side with the next; see `merge_tiles`. Where no tile is
    given, those of more than `max_pixels` are, in tiles of that area.
    """
    options = {"scales": scales, "flip": flip}
    size = image.shape[:2]
    if tile is None and size[0] * size[1] > max_pixels:
        tile = int(max_pixels**0.5)
    windows = list(tiles(size, side=tile or max(size), overlap=overlap))
    if len(windows) == 1:
        return _predict_whole(model, variables, image, pad_to, options)
    parts = ((w, _predict_whole(model, variables, image[w], tile, options)) for w in windows)
    return merge_tiles(parts, size)


def _predict_whole(model, variables, image, pad_to, options) -> np.ndarray:
    rows, columns = image.shape[:2]
    batch = _stack(model, [image], pad_to, 1)
    return np.array(batch_outputs(model, variables, *batch, **options)[0, :rows, :columns])


def merge_tiles(parts: Iterable[tuple[Window, np.ndarray]], size: tuple[int, int]) -> Probs:
    """Probabilities of a photograph of `size` from those of tiles that cover it.

    Averages where tiles meet. A pixel weighs as much as it is rows and columns away from where its
    tile ends within the photograph, so that one fades into the next: plain averages jump there.
    """
    total = weights = None
    for window, probs in parts:
        if total is None:
            total = np.zeros((*size, probs.shape[-1]), np.float32)
            weights = np.zeros((*size, 1), np.float32)
        down, across = map(_distances_to_ends, window, size)
        weight = np.multiply.outer(down, across)[..., None].astype(np.float32)
        total[window] += weight * probs
        weights[window] += weight
    return total / weights


def _distances_to_ends(part: slice, length: int) -> np.ndarray:
    """From 1, along one side of a tile; an edge of the photograph is no end."""
    n = part.stop - part.start
    distances = np.full(n, n)
    if part.start > 0:
        distances = np.minimum(distances, np.arange(1, n + 1))
    if part.stop < length:
        distances = np.minimum(distances, np.arange(n, 0, -1))
    return distances


def tiles(size: tuple[int, int], *, side: int, overlap: float) -> Iterator[Window]:
    """Windows of at most `side` x `side` that cover `size`, evenly spread.

    >>> [(r.start, c.start) for r, c in tiles((10, 25), side=10, overlap=0.2)]
    [(0, 0), (0, 8), (0, 15)]
    """
    if side < 1 or not 0 <= overlap < 1:
        raise UserError(f"tiles of {side} pixels that share {overlap} of their side cover nothing")
    starts = []
    for n in size:
        number = 1 if n <= side else -(-(n - side) // max(int(side * (1 - overlap)), 1)) + 1
        starts.append(np.rint(np.linspace(0, max(n - side, 0), number)).astype(int).tolist())
    for top in starts[0]:
        for left in starts[1]:
            yield slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1]))


def outputs_of(
    model: DeepLabV2,
    variables: Variables,
    images: Iterable[tuple[int, Image]],
    *,
    pad_to: int | None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlap: float = OVERLAP,
    what: What = "labels",
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """(number, output) of each (number, photograph), in the order groups of one size fill up.

    Groups have one photograph a device; the last ones are filled with blanks. With `tile` the
    groups are of tiles, merged as in `predict`, and photographs that one tile covers.
    """
    options = {"scales": scales, "flip": flip, "devices": devices}
    if tile is None:
        yield from _grouped(model, variables, images, lambda _: pad_to, what=what, **options)
        return
    windows, sizes, parts = {}, {}, {}

    def cut() -> Iterator[tuple[tuple[int, int], Image]]:
        for number, image in images:
            sizes[number], parts[number] = image.shape[:2], []
            windows[number] = list(tiles(image.shape[:2], side=tile, overlap=overlap))
            yield from (((number, i), image[w]) for i, w in enumerate(windows[number]))

    def padding(key: tuple[int, int]) -> int | None:
        return pad_to if len(windows[key[0]]) == 1 else tile

    outputs = _grouped(model, variables, cut(), padding, what="probs", **options)
    for (number, i), probs in outputs:
        parts[number].append((windows[number][i], probs))
        if len(parts[number]) == len(windows[number]):
            del windows[number]
            probs = _merged(parts.pop(number), sizes.pop(number))
            yield number, probs.argmax(-1).astype(np.uint8) if what == "labels" else probs


def _merged(parts: list[tuple[Window, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    return parts[0][1] if len(parts) == 1 else merge_tiles(parts, size)


def _grouped(
    model: DeepLabV2,
    variables: Variables,
    images: Iterable[tuple[Any, Image]],
    padding: Callable[[Any], int | None],
    *,
    what: What,
    devices: Sequence[jax.Device] | None,
    scales: tuple[float, ...],
    flip: bool,
) -> Iterator[tuple[Any, np.ndarray]]:
    """(key, output) of each (key, photograph), on a canvas of `padding(key)`."""
    devices = list(devices or jax.local_devices())
    mesh = Mesh(np.array(devices), ("photographs",))
    spread = NamedSharding(mesh, PartitionSpec("photographs"))
    variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

    def run(group):
        pad_to = padding(group[0][0])
        batch = _stack(model, [image for _, image in group], pad_to, len(devices))
        batch = jax.device_put(batch, spread)
        outputs = batch_outputs(model, variables, *batch, scales=scales, flip=flip, what=what)
        for (key, image), output in zip(group, np.asarray(outputs), strict=False):
            yield key, output[: image.shape[0], : image.shape[1]]

    waiting: dict[tuple[int, int], list] = {}
    for key, image in images:
        size = array_size(model, image.shape[:2], padding(key))
        group = waiting.setdefault(size, [])
        group.append((key, image))
        if len(group) == len(devices):
            yield from run(waiting.pop(size))
    for group in waiting.values():
        yield from run(group)


def _stack(model: DeepLabV2, images: Sequence[np.ndarray], pad_to: int | None, number: int):
    """Photographs of one array_size at the top left of `number` blank ones, sizes and canvases."""
    first = images[0].shape[:2]
    padded = np.zeros((number, *array_size(model, first, pad_to), 3), np.uint8)
    sizes, canvas = np.ones((2, number, 2), np.int32)
    for i, image in enumerate(images):
        rows, columns = image.shape[:2]
        padded[i, :rows, :columns] = image
        sizes[i] = rows, columns
        canvas[i] = padded_size(model, (rows, columns), pad_to)
    return padded, sizes, None if _fits(first, pad_to) else canvas


def evaluate(
    model: DeepLabV2,
    variables: Variables,
    source: Any,
    *,
    pad_to: int | None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlap: float = OVERLAP,
    devices: Sequence[jax.Device] | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> metrics.Confusion:
    """Confusion matrix over all photographs of `source`, whose items hold `image` and `labels`."""
    truth = {}
    confusion = np.zeros((model.num_classes, model.num_classes), np.int64)
    options = {"pad_to": pad_to, "scales": scales, "flip": flip, "devices": devices}
    options |= {"tile": tile, "overlap": overlap}
    photographs = _photographs(source, truth, progress)
    for number, predicted in outputs_of(model, variables, photographs, **options):
        labels = truth.pop(number)["labels"]
        confusion += metrics.confusion_matrix(labels, predicted, num_classes=model.num_classes)
    return confusion


def evaluate_refined(
    model: DeepLabV2,
    variables: Variables,
    source: Any,
    refine: Callable[[Image, Probs], Probs],
    *,
    progress: Callable[[Iterable], Iterable] = iter,
    **options: Any,
) -> tuple[metrics.Confusion, metrics.Confusion]:
    """Confusion matrices before and after `refine(image, probs)`, such as a CRF, in one pass.

    Options are those of `evaluate`.
    """
    total = np.zeros((2, model.num_classes, model.num_classes), np.int64)
    outputs = each_prediction(model, variables, source, refine, progress=progress, **options)
    for item, maps in outputs:
        total += [
            metrics.confusion_matrix(item["labels"], labels, num_classes=model.num_classes)
            for labels in maps
        ]
    return total[0], total[1]


def each_prediction(
    model: DeepLabV2,
    variables: Variables,
    source: Any,
    refine: Callable[[Image, Probs], Probs] | None = None,
    *,
    progress: Callable[[Iterable], Iterable] = iter,
    **options: Any,
) -> Iterator[tuple[dict, list[LabelMap]]]:
    """(item, label maps) of each photograph: the network's and, with `refine`, the refined ones.

    Options are those of `evaluate`.
    """
    items = {}
    what = "probs" if refine else "labels"
    photographs = _photographs(source, items, progress)
    for number, output in outputs_of(model, variables, photographs, what=what, **options):
        item = items.pop(number)
        if refine is None:
            yield item, [output]
        else:
            yield item, [output.argmax(-1), np.asarray(refine(item["image"], output)).argmax(-1)]


def _photographs(source, items, progress) -> Iterator[tuple[int, np.ndarray]]:
    """(number, photograph) over a source; the whole items wait in `items` for their output."""
    for number in progress(range(len(source))):
        items[number] = source[number]
        yield number, items[number]["image"]


def copy_nearest_frame(
    train: Any, val: Any, *, num_classes: int, progress: Callable[[Iterable], Iterable] = iter
) -> metrics.Confusion:
    """Confusion matrix of a baseline without learning: the mask of the most similar photograph.

    Similar is a small squared difference of 48x36 thumbnails. Where splits share sequences, as
    CamVid's do, this is what a network must beat.
    """
    thumbnails = np.stack([_thumbnail(train[i]["image"]) for i in progress(range(len(train)))])
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for number in progress(range(len(val))):
        item = val[number]
        distance = np.square(thumbnails - _thumbnail(item["image"])).sum((1, 2, 3))
        nearest = train[int(distance.argmin())]["labels"]
        rows, columns = (
            np.arange(n) * m // n for n, m in zip(item["labels"].shape, nearest.shape, strict=True)
        )
        copied = nearest[rows][:, columns]
        # Void in the copied mask is no class: the commonest one of the mask is written there.
        commonest = np.bincount(copied.ravel(), minlength=256)[:num_classes].argmax()
        copied = np.where(copied < num_classes, copied, commonest)
        confusion += metrics.confusion_matrix(item["labels"], copied, num_classes=num_classes)
    return confusion


def _thumbnail(image: Image) -> np.ndarray:
    return np.asarray(PILImage.fromarray(image).resize((48, 36)), np.float32)
