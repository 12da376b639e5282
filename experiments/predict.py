"""Segment photographs: labels as palette PNG, overlays with a legend, probabilities on request.

    python experiments/predict.py voc12 photograph.jpg --crf
    python experiments/predict.py runs/small holiday --crf --output segmented
    python experiments/predict.py --list-weights

voc12 is a name of published weights, which are downloaded once; --list-weights tells all names.

Photographs may have any size; large ones are predicted in tiles. EXIF orientation is respected,
and results have the size of the upright photograph. Reading, refining and writing go on in threads
while the network is at work on the next photographs.

A photograph that cannot be read is named and left out; the others are written, and the exit status
is 2. The same command typed again goes on where it was. The output folder belongs to one command:
other options or photographs need another --output, or --overwrite.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cli
import tyro

from deeplab_jax.choices import MAX_PIXELS, OVERLAP


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, a weight file, or a name of published weights (--list-weights)."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Photographs, or folders of them; hidden files are left out."""
    output: Path = Path("predictions")
    """Folder for NAME.png (class ids), NAME_overlay.jpg and, on request, NAME_probs.npy."""
    overwrite: bool = False
    """Predict all photographs again, whatever the folder holds of them."""
    crf: bool = False
    """Refine with the fully connected CRF."""
    crf_params: str | None = None
    """File that search_crf.py left, or the name of a published set of parameters; where none is
    given, what the run learnt (--crf-iterations), else the paper's for ResNet-101."""
    probs: bool = False
    """Write class probabilities too, float32 [h, w, classes]."""
    scales: tuple[float, ...] = (1.0,)
    """Average the probabilities of the network run at these sizes."""
    flip: bool = False
    """Average with the mirrored photograph."""
    tile: int | None = None
    """Predict photographs that a square of this side does not cover in such tiles."""
    overlap: float = OVERLAP
    """Part of its side that a tile shares at least with the next."""
    max_pixels: int = MAX_PIXELS
    """Where no tile is given, photographs with more are predicted in tiles of this area."""
    range: tuple[float, float] | None = None
    """The values that become black and white in photographs of more than 8 bits a channel; where
    none are given, those that the run was trained with."""

    workers: int | None = None
    """Threads that read, refine and write; as many as there are cores where none is given."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    if sys.argv[1:] == ["--list-weights"]:
        from deeplab_jax.weights import names

        print(names.listing())
        sys.exit()
    given = cli.parse(Options, __doc__)

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from deeplab_jax import crf, evaluation, predictions, runs, visualization
from deeplab_jax.data import photographs
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import Image, UserError
from deeplab_jax.weights import names, sources


def main(options: Options) -> None:
    cli.check_positive(workers=options.workers)
    paths = photographs.find(options.images)
    options = replace(options, source=names.resolve(options.source))
    outputs = [predictions.paths_of(options.output, path, probs=options.probs) for path in paths]
    predictions.refuse_folder_of_photographs(options.output, options.images)
    predictions.refuse_overwriting(written(options, outputs), inputs_of(options, paths))
    model, variables, meta = runs.load(options.source)
    params = crf.choose_params(options.crf_params, learnt=meta.get("crf"))
    settings = settings_of(options, params, meta)
    with predictions.hold(options.output):
        numbers = predictions.begin(
            options.output, settings, paths, outputs, overwrite=options.overwrite
        )
        if len(numbers) < len(paths):
            there = len(paths) - len(numbers)
            print(f"going on in {options.output}: {there} of {len(paths)} photographs are done")
        left_out = predict(options, paths, outputs, numbers, model, variables, params, meta)
    if left_out:
        raise UserError(
            f"{left_out} of {len(paths)} photographs could not be read, they are named above; the "
            f"other {len(paths) - left_out} are segmented: {options.output}"
        )
    print(f"{len(paths)} photographs segmented: {options.output}")


def written(options: Options, outputs: Sequence[predictions.Paths]) -> list[Path]:
    """All files that may be written."""
    record = options.output / predictions.RECORD
    return [record, *(path for paths in outputs for path in paths)]


def inputs_of(options: Options, paths: Sequence[Path]) -> list[Path]:
    """Photographs, the run's files or the weight file, and the CRF's parameters."""
    source = options.source
    weights = [p for p in source.iterdir() if p.is_file()] if source.is_dir() else [source]
    params = [Path(options.crf_params)] if options.crf_params else []
    return [*paths, *weights, *params]


def settings_of(options: Options, params: crf.CRFParams, meta: dict[str, Any]) -> dict[str, Any]:
    """What the results depend on, besides the photographs."""
    source = options.source
    digest = meta["source"]["sha256"] if source.is_dir() else sources.sha256(source)
    return {
        "weights of the fingerprint": digest,
        "step": meta.get("step"),
        "crf": asdict(params) if options.crf else None,
        **{name: getattr(options, name) for name in ("probs", "scales", "flip", "tile", "overlap")},
        "max_pixels": options.max_pixels,
        "range": range_of(options),
    }


def range_of(options: Options) -> photographs.ValueRange | None:
    """The values of black and white, as given or as the run was trained."""
    return options.range or runs.config_of(options.source).data.range


def predict(
    options: Options,
    paths: Sequence[Path],
    outputs: Sequence[predictions.Paths],
    numbers: Sequence[int],
    model: DeepLabV2,
    variables: Any,
    params: crf.CRFParams,
    meta: dict[str, Any],
) -> int:
    """Writes the results of the photographs of these numbers; how many could not be read."""
    workers = options.workers or os.cpu_count() or 1
    images: dict[int, Image] = {}
    left_out = 0
    value_range = range_of(options)
    bar = tqdm(total=len(numbers), unit="image", disable=None)

    def read() -> Iterator[tuple[int, Image]]:
        nonlocal left_out
        for number, image in in_threads(read_or_tell, numbers, workers):
            if isinstance(image, UserError):
                left_out += 1
                bar.update()
                bar.write(f"left out: {image}", file=sys.stderr)
            else:
                images[number] = image
                yield number, image

    def read_or_tell(number: int) -> tuple[int, Image | UserError]:
        try:
            return number, photographs.read(paths[number], value_range=value_range)
        except UserError as error:
            return number, error

    def finish(numbered: tuple[int, np.ndarray]) -> None:
        number, output = numbered
        image = images.pop(number)
        if options.crf:
            output = np.asarray(crf.refine(image, output, params))
        write(outputs[number], image, output, meta["class_names"])

    results = evaluation.outputs_of(
        model,
        variables,
        read(),
        pad_to=None,
        scales=options.scales,
        flip=options.flip,
        tile=options.tile,
        overlap=options.overlap,
        max_pixels=options.max_pixels,
        what="probs" if options.crf or options.probs else "labels",
    )
    with bar:
        for _ in in_threads(finish, results, workers):
            bar.update()
    return left_out


def in_threads(function: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """Results in the order of the items, worked out ahead of whoever asks, in so many threads; an
    error comes in its turn."""
    waiting = deque()
    with ThreadPoolExecutor(workers) as threads:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write(
    paths: predictions.Paths, image: Image, output: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """`output` holds probabilities or labels."""
    labels = output.argmax(-1) if output.ndim == 3 else output
    if paths.probs is not None:
        with predictions.written_whole(paths.probs) as partial:
            np.save(partial, output)
    overlay = visualization.overlay(image, labels, class_names=class_names)
    with predictions.written_whole(paths.overlay) as partial:
        PILImage.fromarray(overlay).save(partial, quality=92)
    with predictions.written_whole(paths.labels) as partial:
        visualization.save_labels(partial, labels)


if __name__ == "__main__":
    cli.run(main, given)
