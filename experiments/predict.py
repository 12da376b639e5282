"""Segment photographs: labels as palette PNG, overlays with a legend, probabilities on request.

    python experiments/predict.py voc12 photograph.jpg --crf
    python experiments/predict.py runs/small holiday --crf --output segmented
    python experiments/predict.py --list-weights

voc12 is a name of published weights, which are downloaded once; --list-weights tells all names.

Photographs may have any size; large ones are predicted in tiles. EXIF orientation is respected,
and results have the size of the upright photograph. Reading, refining and writing go on in threads
while the network is at work on the next photographs.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cli
import numpy as np
import tyro
from PIL import Image as PILImage
from tqdm import tqdm

from deeplab_jax import crf, evaluation, runs, tiling, visualization
from deeplab_jax.data import photographs
from deeplab_jax.weights import names


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, a weight file, or a name of published weights (--list-weights)."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Photographs, or folders of them."""
    output: Path = Path("predictions")
    """Folder for NAME.png (class ids), NAME_overlay.jpg and, on request, NAME_probs.npy."""
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
    overlap: float = tiling.OVERLAP
    """Part of its side that a tile shares at least with the next."""
    max_pixels: int = tiling.MAX_PIXELS
    """Where no tile is given, photographs with more are predicted in tiles of this area."""


def main(options: Options) -> None:
    paths = photographs.find(options.images)
    options = replace(options, source=names.resolve(options.source))
    model, variables, meta = runs.load(options.source)
    params = crf.choose_params(options.crf_params, learnt=meta.get("crf"))
    options.output.mkdir(parents=True, exist_ok=True)
    images = {}

    def read() -> Iterator[tuple[int, np.ndarray]]:
        for number, image in enumerate(in_threads(photographs.read, paths)):
            images[number] = image
            yield number, image

    def finish(numbered: tuple[int, np.ndarray]) -> None:
        number, output = numbered
        image = images.pop(number)
        if options.crf:
            output = np.asarray(crf.refine(image, output, params))
        write(options, paths[number].stem, image, output, meta["class_names"])

    outputs = evaluation.outputs_of(
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
    for _ in tqdm(in_threads(finish, outputs), total=len(paths), unit="image"):
        pass
    print(f"{len(paths)} photographs segmented: {options.output}")


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results in the order of the items, worked out ahead of whoever asks, in as many threads as
    there are cores; an error comes in its turn."""
    number = os.cpu_count() or 1
    waiting = deque()
    with ThreadPoolExecutor(number) as threads:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def write(
    options: Options,
    name: str,
    image: np.ndarray,
    output: np.ndarray,
    class_names: tuple[str, ...],
) -> None:
    """`output` holds probabilities or labels."""
    labels = output.argmax(-1) if output.ndim == 3 else output
    visualization.save_labels(options.output / f"{name}.png", labels)
    overlay = visualization.overlay(image, labels, class_names=class_names)
    PILImage.fromarray(overlay).save(options.output / f"{name}_overlay.jpg", quality=92)
    if options.probs:
        np.save(options.output / f"{name}_probs.npy", output)


if __name__ == "__main__":
    if sys.argv[1:] == ["--list-weights"]:
        print(names.listing())
        sys.exit()
    cli.run(main, cli.parse(Options, __doc__))
