"""From photographs to probabilities and scores.

`predict` takes one photograph of any size and gives probabilities; `evaluate` runs over a
split on all local devices and gives its confusion matrix and what other scores need.
"""

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int, Integer, UInt8

from deeplab_jax import metrics, tiling, train
from deeplab_jax.choices import MAX_PIXELS, OVERLAP, What
from deeplab_jax.models import masking
from deeplab_jax.models.deeplab import DeepLabV2, make_inputs, weight_name
from deeplab_jax.ops.resize import closing_size, rescale, scaled_size
from deeplab_jax.types import LabelMap, Photograph, Probs, UserError

Variables: TypeAlias = Any
Source: TypeAlias = Any
"""Photographs by number, with a length: `source[i]` holds `image` and `labels`."""
Refine: TypeAlias = Callable[[Photograph, Probs], Probs]
Progress: TypeAlias = Callable[[Iterable], Iterable]
"""Wraps the loop over the photographs, such as tqdm."""
Part = tuple[Any, Photograph, int | None, What]
"""Key, photograph or tile, size that its canvas is padded to, and kind of output."""

AT_ONCE = 8
"""Largest number of photographs that an accelerator works on at once."""

SIDE_STEP = 128
"""Programs are compiled for sides 128 k + 1, to which photographs are padded: 375 x 500 becomes
385 x 513. So a few programs serve all of VOC's photographs."""


@dataclass(frozen=True)
class InferenceOptions:
    """How a network is run on photographs; the fields of config.EvalConfig, which a score has."""

    pad_to: int | None = None
    """Smaller photographs are padded to so many rows and columns (513 in the release); None: each
    is run at its own size."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which the whole network is run; probabilities are averaged."""
    flip: bool = False
    """Average with the flipped photograph."""
    tile: int | None = None
    """Photographs that a square of this side does not cover are run in such tiles."""
    overlap: float = OVERLAP
    """Part of its side that a tile shares at least with the next."""


@partial(jax.jit, static_argnames=("model", "scales", "flip", "what"))
def batch_outputs(
    model: DeepLabV2,
    variables: Variables,
    image: UInt8[jax.Array, "b h w channels"],
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
    of many sizes. Outputs of several `scales`, and of the flipped photographs with `flip`, are
    averaged as probabilities.
    """
    inputs = masking.erase(make_inputs(image, model.mean_bgr), sizes)
    run: Any = partial(model.apply, variables, method="full_size")
    size = image.shape[1:3]
    aligned: Any = {"alignment": model.alignment}
    outputs = []
    for scale in scales:
        part, network = None, run
        if canvas is None:
            scaled = rescale(inputs, scale, **aligned)
        else:
            part = scaled_size(canvas, scale, **aligned)
            scaled = masking.rescale_each(inputs, scale, canvas, **aligned)
            network = partial(masking.masked, run, sizes=part, full_sizes=canvas)
        outputs.append(network(scaled, size, scale))
        if flip:
            flipped = network(masking.flip(scaled, part), size, scale)
            outputs.append(masking.flip(flipped, canvas))
    if what == "labels" and len(outputs) == 1:
        return outputs[0].argmax(-1).astype(jnp.uint8)
    total = cast(jax.Array, sum(jax.nn.softmax(logits) for logits in outputs))
    probs = total / len(outputs)
    return probs.argmax(-1).astype(jnp.uint8) if what == "labels" else probs


def padded_size(model: DeepLabV2, size: Sequence[int], pad_to: int | None) -> tuple[int, int]:
    """Rows and columns of the canvas: what the network is run at.

    At least `pad_to` where that is given (513 in the release). With aligned corners the size is
    raised to the next one that closes over the network's scales, 8k + 1 or 32k + 1; see
    ops.resize.closing_size.
    """
    closing = {"alignment": model.alignment, "num_scales": len(model.scales)}
    rows, columns = (closing_size(max(n, pad_to or n), **closing) for n in size)
    return rows, columns


def array_size(model: DeepLabV2, size: Sequence[int], pad_to: int | None) -> tuple[int, int]:
    """Rows and columns of the array that the canvas lies in: the canvas of `pad_to`, or few others.

    >>> from deeplab_jax.models.deeplab import build
    >>> array_size(build(), (375, 500), None), array_size(build(), (375, 500), 513)
    ((385, 513), (513, 513))
    """
    canvas = padded_size(model, size, pad_to)
    if pad_to is not None and max(size) <= pad_to:
        return canvas
    rows, columns = (-(-(n - 1) // SIDE_STEP) * SIDE_STEP + 1 for n in canvas)
    return rows, columns


def predict(
    model: DeepLabV2,
    variables: Variables,
    image: Photograph,
    options: InferenceOptions = InferenceOptions(),
    *,
    max_pixels: int | None = MAX_PIXELS,
    **changes: Any,
) -> Probs:
    """Class probabilities of one photograph, NumPy float32 `[h, w, classes]`.

    Fields of `options` may be given by themselves: `predict(model, variables, image, flip=True)`.
    Tiles are merged as in `tiling.merge_tiles`. Where no tile is given, a photograph of more than
    `max_pixels` is predicted in tiles of that area.
    """
    check_image(image, channels=model.num_channels)
    check_variables(model, variables)
    options = replace(options, **changes)
    size = image.shape[:2]
    side, windows = tiling.cut(size, options.tile, max_pixels, options.overlap)

    def whole(part, pad_to):
        batch = _stack(model, [part], pad_to, 1)
        probs = batch_outputs(model, variables, *batch, scales=options.scales, flip=options.flip)
        return np.array(probs[0, : part.shape[0], : part.shape[1]])

    if len(windows) == 1:
        return whole(image, options.pad_to)
    return tiling.merge_tiles(((window, whole(image[window], side)) for window in windows), size)


def check_image(image: Any, *, channels: int = 3) -> None:
    """Refuses what is no photograph as the network takes it, uint8 0..255 `[h, w, channels]`, RGB
    where there are three, with a UserError."""
    kind = f"{type(image).__module__.split('.')[0]}.{type(image).__name__}"
    if isinstance(image, str | os.PathLike):
        raise UserError(
            f"a photograph must be an array, and the path {image} came; give "
            "deeplab_jax.photographs.read(path)"
        )
    if not isinstance(image, np.ndarray | jax.Array):
        raise UserError(
            f"a photograph must be an array of NumPy or JAX, and {kind} came; give "
            "numpy.asarray(image)"
        )
    if image.ndim != 3 or image.shape[-1] != channels:
        order = "in the order of the files that the network was trained on"
        order = "RGB, all equal where it is grey" if channels == 3 else order
        raise UserError(
            f"a photograph must be [rows, columns, {channels}], the channels {order}, and "
            f"{image.shape} came"
        )
    if image.dtype != np.uint8:
        raise UserError(
            f"a photograph must be uint8 with values 0..255, and {image.dtype} came; scale it to "
            "0..255 and give image.astype('uint8')"
        )


def check_variables(model: DeepLabV2, variables: Variables) -> None:
    """Refuses variables that are not those of the network with a UserError: missing, left over, or
    of other shapes. The CRF that a network was trained with may be among them, and is not used."""
    trees = _variable_shapes(cast(Hashable, model)), dict(variables)  # flax makes it hashable
    wanted, given = (
        {weight_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in trees
    )
    for name in sorted(wanted.keys() | {n for n in given if not n.startswith("params/crf/")}):
        ours, theirs = (shapes.get(name, "no array") for shapes in (wanted, given))
        if ours != theirs:
            raise UserError(
                f"the network has {ours} as {name}, and the variables have {theirs}; are they "
                "those of this network?"
            )


_variable_shapes = cache(train.variable_shapes)


def outputs_of(
    model: DeepLabV2,
    variables: Variables,
    images: Iterable[tuple[int, Photograph]],
    options: InferenceOptions = InferenceOptions(),
    *,
    max_pixels: int | None = None,
    what: What = "labels",
    devices: Sequence[jax.Device] | None = None,
    on_device: bool = False,
    **changes: Any,
) -> Iterator[tuple[int, np.ndarray | jax.Array]]:
    """(number, output) of each (number, photograph), in the order groups of one size fill up.

    Groups have one photograph a device on CPUs, and on accelerators as many as their memory holds,
    AT_ONCE at most; the last ones are filled with blanks. Options, `max_pixels` and tiles are those
    of `predict`; without `tile` and `max_pixels` no photograph is cut. Outputs are NumPy arrays;
    with `on_device` those of photographs that were not cut are JAX arrays, each where it was made.
    """
    options = replace(options, **changes)
    at_work = {}

    def cut() -> Iterator[Part]:
        for number, image in images:
            size = image.shape[:2]
            side, windows = tiling.cut(size, options.tile, max_pixels, options.overlap)
            at_work[number] = size, len(windows), []
            canvas, asked = (options.pad_to, what) if len(windows) == 1 else (side, "probs")
            for window in windows:
                yield (number, window), image[window], canvas, asked

    devices = list(devices or jax.local_devices())
    outputs = _grouped(model, variables, cut(), options, devices, on_device)
    for (number, window), output in outputs:
        size, count, done = at_work[number]
        done.append((window, output))
        if len(done) == count:
            del at_work[number]
            if count > 1:
                output = tiling.merge_tiles([(w, np.asarray(part)) for w, part in done], size)
                output = output.argmax(-1).astype(np.uint8) if what == "labels" else output
            yield number, output


def _grouped(
    model: DeepLabV2,
    variables: Variables,
    parts: Iterable[Part],
    options: InferenceOptions,
    devices: Sequence[jax.Device],
    on_device: bool,
) -> Iterator[tuple[Any, np.ndarray | jax.Array]]:
    """(key, output) of each part, in groups of one array_size.

    The outputs of a group are yielded after the next group is started, so that devices do not wait
    for the caller or for reading.
    """
    mesh = Mesh(np.array(devices), ("photographs",))
    spread = NamedSharding(mesh, PartitionSpec("photographs"))
    variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

    def placed(group, number):
        _, _, pad_to, what = group[0]
        batch = _stack(model, [image for _, image, *_ in group], pad_to, number)
        batch = jax.device_put(batch, spread)
        return batch, {"scales": options.scales, "flip": options.flip, "what": what}

    @cache
    def group_size(kind) -> int:
        (rows, columns), what = kind
        blank = np.zeros((rows, columns, model.num_channels), np.uint8)

        def needed(number):
            batch, how = placed([(None, blank, None, what)], number * len(devices))
            program = batch_outputs.lower(model, variables, *batch, **how).compile()
            memory = program.memory_analysis()
            assert memory is not None  # devices that report their memory report this too
            return memory.temp_size_in_bytes + memory.output_size_in_bytes

        return len(devices) * _fitting(devices[0], needed)

    def groups():
        waiting: dict[Any, list[Part]] = {}
        for part in parts:
            _, image, pad_to, what = part
            kind = array_size(model, image.shape[:2], pad_to), what
            group = waiting.setdefault(kind, [])
            group.append(part)
            if len(group) == group_size(kind):
                yield kind, waiting.pop(kind)
        yield from waiting.items()

    at_work = None
    for kind, group in groups():
        batch, how = placed(group, group_size(kind))
        started = group, batch_outputs(model, variables, *batch, **how)
        if at_work is not None:
            yield from _cut_out(*at_work, on_device=on_device)
        at_work = started
    if at_work is not None:
        yield from _cut_out(*at_work, on_device=on_device)


def _fitting(device: jax.Device, needed: Callable[[int], int]) -> int:
    """Photographs that a device works on at once, of which so many bytes are `needed`: one on CPUs,
    elsewhere as many as its memory holds, AT_ONCE at most."""
    stats = device.memory_stats()
    if not stats or "bytes_limit" not in stats:  # as on CPUs
        return 1
    room = int(0.9 * (stats["bytes_limit"] - stats["bytes_in_use"]))
    return largest_fitting(AT_ONCE, needed, room)


def _cut_out(
    group: list, outputs: jax.Array, *, on_device: bool
) -> Iterator[tuple[Any, np.ndarray | jax.Array]]:
    """(key, output) of each part of a group, at its own size, in which photographs differ."""
    if on_device:  # each of the device that computed it
        shards = sorted(outputs.addressable_shards, key=lambda s: s.index[0].start or 0)
        singles = (output for shard in shards for output in shard.data)
    else:
        singles = np.asarray(outputs)
    for (key, image, *_), output in zip(group, singles, strict=False):
        yield key, output[: image.shape[0], : image.shape[1]]


def refines_on_devices() -> bool:
    """Whether probabilities stay on the devices to be refined there: on GPUs.

    A TPU is expected to take longer for the CRF than its host; see crf/README.md.
    """
    return jax.default_backend() not in ("cpu", "tpu")


def largest_fitting(number: int, needed: Callable[[int], int], room: int) -> int:
    """`number` halved until what is `needed` for it fits into `room`; at least 1.

    >>> largest_fitting(8, lambda n: 3 * n, 10), largest_fitting(8, lambda n: 3 * n, 1)
    (2, 1)
    """
    while number > 1 and needed(number) > room:
        number = -(-number // 2)
    return number


def _stack(model: DeepLabV2, images: Sequence[np.ndarray], pad_to: int | None, number: int):
    """Photographs of one array_size at the top left of `number` blank ones, sizes and canvases."""
    *first, channels = images[0].shape
    padded = np.zeros((number, *array_size(model, first, pad_to), channels), np.uint8)
    sizes, canvas = np.ones((2, number, 2), np.int32)
    for i, image in enumerate(images):
        sizes[i] = rows, columns = image.shape[:2]
        padded[i, :rows, :columns] = image
        canvas[i] = padded_size(model, (rows, columns), pad_to)
    fits = pad_to is not None and max(first) <= pad_to
    return padded, sizes, None if fits else canvas


def evaluate(
    model: DeepLabV2,
    variables: Variables,
    source: Source,
    options: InferenceOptions = InferenceOptions(),
    **changes: Any,
) -> metrics.Tally:
    """Tally over all photographs of `source`, whose items hold `image` and `labels`.

    The other options are those of `each_prediction`.
    """
    total = metrics.empty_tally(model.num_classes)
    for item, (labels,) in each_prediction(model, variables, source, None, options, **changes):
        found = metrics.tally(item["labels"], labels, num_classes=model.num_classes)
        total = metrics.add(total, found)
    return total


def each_prediction(
    model: DeepLabV2,
    variables: Variables,
    source: Source,
    refine: Refine | None = None,
    options: InferenceOptions = InferenceOptions(),
    *,
    devices: Sequence[jax.Device] | None = None,
    progress: Progress = iter,
    **changes: Any,
) -> Iterator[tuple[dict, list[LabelMap]]]:
    """(item, label maps) of each photograph: the network's and, with `refine`, the refined ones.

    Fields of `options` may be given by themselves, as in `predict`. `progress` wraps the loop over
    the photographs. On accelerators `refine` works on as many photographs at once
    as there are devices, in threads. On GPUs it is given JAX arrays, each on the device that
    computed it, and labels alone are copied to the host; elsewhere it is given NumPy arrays.
    """
    check_variables(model, variables)
    items = {}  # those that wait for their output

    def photographs() -> Iterator[tuple[int, Photograph]]:
        for number in progress(range(len(source))):
            items[number] = source[number]
            yield number, items[number]["image"]

    run = partial(outputs_of, model, variables, photographs(), options, devices=devices, **changes)
    if refine is None:
        for number, output in run():
            yield items.pop(number), [output]
        return
    outputs = run(what="probs", on_device=refines_on_devices())

    def both(numbered) -> tuple[dict, list[LabelMap]]:
        number, probs = numbered
        item = items.pop(number)
        refined = refine(item["image"], probs)
        return item, [np.asarray(maps.argmax(-1)) for maps in (probs, refined)]

    workers = len(devices or jax.local_devices())
    on_cpus = jax.default_backend() == "cpu"
    yield from map(both, outputs) if on_cpus else in_threads(both, outputs, workers)


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """Results in the order of the items, computed ahead in `workers` threads; an error is raised
    when it is the turn of its item."""
    waiting = deque()
    with ThreadPoolExecutor(workers) as threads:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
