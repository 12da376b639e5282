"""Segment photographs: labels as palette PNG, overlays with a legend, probabilities on request.

    python experiments/predict.py voc12 photograph.jpg --crf
    python experiments/predict.py runs/small holiday --crf --output segmented
    python experiments/predict.py --list-weights

voc12 is a name of published weights, which are downloaded once; --list-weights shows all names.

Photographs may have any size; large ones are predicted in tiles. EXIF orientation is respected,
and results have the size of the upright photograph. Reading, refining and writing go on in threads
while the network is at work on the next photographs.

For a test server the photographs are those of a split of the data set, and the masks get its names,
ids and archive; photographs are padded and tiled as the run is scored:

    python experiments/predict.py runs/test_resnet101 --submission voc --root data/voc --crf \
        --crf-normalization per_pixel --output voc_test
    python experiments/predict.py runs/cityscapes --submission cityscapes --root data/cityscapes

A photograph that cannot be read is named and left out; the others are written, and the exit status
is 2. The same command typed again goes on where it was, and other photographs may follow. The
output folder belongs to one network and its options: others need another --output, or --overwrite.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cli
import numpy as np
import tyro
from PIL import Image as PILImage
from tqdm import tqdm

from deeplab_jax import evaluation, predictions, segmenter, start, visualization
from deeplab_jax.choices import MAX_PIXELS, Server
from deeplab_jax.config import Config
from deeplab_jax.data import builders, folders, labels, public
from deeplab_jax.data import images as photographs
from deeplab_jax.segmenter import Segmenter
from deeplab_jax.types import VOC_CLASS_NAMES, Photograph, UserError
from deeplab_jax.weights import formats, names


@dataclass(frozen=True)
class Options(cli.NetworkOptions):
    source: Annotated[Path | None, tyro.conf.Positional] = None
    """Work folder of a run, a weight file, or a name of published weights (--list-weights)."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Photographs, or folders of them; hidden files are left out."""
    list_weights: bool = False
    """Print the names of published weights, and do nothing."""
    submission: Server | None = None
    """Test server to write masks for; photographs are then those of --split of the data set."""
    split: str = "test"
    """Split of the data set, for --submission."""
    competition: Literal[5, 6] = 6
    """Competition of PASCAL VOC's server: 6, or 5 for methods trained on VOC's own data alone."""
    masks: Literal["ids", "raw"] = "ids"
    """What NAME.png holds: class ids with a palette, or the raw ids or colours of the data set's
    own masks, by its mapping.txt. Cityscapes' server is given raw ids."""
    output: Path = Path("predictions")
    """Folder for NAME.png (class ids), NAME_overlay.jpg and, on request, NAME_probs.npy."""
    overwrite: bool = False
    """Remove what the folder holds of earlier commands, and predict all photographs."""
    probs: bool = False
    """Write class probabilities too, float32 [h, w, classes]."""
    range: tuple[float, ...] | None = None
    """The values that become black and white in photographs of more than 8 bits a channel, LOW HIGH
    or such a pair for each channel; where none are given, those that the run was trained with."""
    workers: int = os.cpu_count() or 1
    """Threads that read, refine and write."""


@dataclass(frozen=True)
class Work:
    """What is predicted, by what, and where it is written."""

    found: Segmenter
    config: Config
    refine: evaluation.Refine | None
    paths: Sequence[Path]
    outputs: Sequence[predictions.Paths]
    value_range: tuple[float, ...] | None
    mapping: labels.LabelMapping | None
    """From class ids to what the masks hold; None: class ids."""


def main(options: Options) -> None:
    if options.list_weights:
        return print(names.listing())
    if options.source is None:
        raise UserError("give a work folder, a weight file or a name of weights (--list-weights)")
    cli.check_positive(workers=options.workers)
    source = names.resolve(options.source)
    if options.submission is not None:
        paths, outputs = of_split(options, segmenter.config_of(source, {}))
    else:
        paths, unused = photographs.find(options.images)
        for sentence in unused:
            print(f"note: {sentence}")
        if not any(path.exists() for path in paths):  # before weights are downloaded
            raise UserError(f"there is no photograph {paths[0]}; give files, or folders of them")
        outputs = [predictions.paths_of(options.output, p, probs=options.probs) for p in paths]
    predictions.refuse_folder_of_photographs(options.output, options.images)
    predictions.refuse_overwriting(written(options, outputs), inputs_of(options, source, paths))
    found, config = options.load(source)
    value_range = options.range or config.data.range
    mapping = mapping_of(options, found, config)
    refine = options.refine(found, config)
    work = Work(found, config, refine, paths, outputs, value_range, mapping)
    with predictions.hold(options.output):
        settings = settings_of(options, source, work)
        numbers = predictions.begin(
            options.output, settings, paths, outputs, overwrite=options.overwrite
        )
        if len(numbers) < len(paths):
            there = len(paths) - len(numbers)
            print(f"going on in {options.output}: {there} of {len(paths)} photographs are done")
        left_out = predict(options, work, numbers)
    if left_out:
        raise UserError(
            f"{left_out} of {len(paths)} photographs could not be read, they are named above; the "
            f"other {len(paths) - left_out} are segmented: {options.output}"
        )
    counted = "1 photograph" if len(paths) == 1 else f"{len(paths)} photographs"
    print(f"{counted} segmented: {options.output}")
    if options.submission is not None:
        archive = predictions.pack(options.submission, options.output, outputs)
        print(f"{archive} is for the test server of {options.submission}")


CLASSES = {"voc": VOC_CLASS_NAMES, "cityscapes": tuple(public.CITYSCAPES.values())}
"""Of the test servers."""


def of_split(options: Options, config: Config) -> tuple[list[Path], list[predictions.Paths]]:
    """The photographs of the split for a test server, and where their masks are written."""
    if options.images or options.probs:
        raise UserError(
            "--submission takes the photographs of --split and writes masks alone; leave out the "
            "photographs, and --probs"
        )
    root = start.find_root(config, options.root, options.prepared_dir)
    folder = builders.open_folder(root, options.prepared_dir, (options.split,))
    pairs = folders.read_split(folder, options.split)
    outputs = predictions.submission(
        options.submission,
        options.output,
        [pair.name for pair in pairs],
        split=options.split,
        competition=options.competition,
    )
    return [pair.photograph for pair in pairs], outputs


def mapping_of(options: Options, found: Segmenter, config: Config) -> labels.LabelMapping | None:
    """From class ids to what the masks are to hold; None: class ids.

    Raises:
      UserError: the network's classes are not those of the server or the data set, or the data set
        has no mapping.
    """
    server, known = options.submission, ", ".join(found.class_names)[:200]
    if server is not None and found.class_names != CLASSES[server]:
        raise UserError(
            f"the test server of {server} wants its {len(CLASSES[server])} classes, and "
            f"{options.source} knows {known}"
        )
    if options.masks == "ids" and server != "cityscapes":
        return None
    root = start.find_root(config, options.root, options.prepared_dir)
    folder = builders.open_folder(root, options.prepared_dir)
    if folder.mapping is None:
        raise UserError(
            f"{folder.path} has no mapping of raw ids or colours; leave out --masks raw"
        )
    if tuple(folder.class_names) != found.class_names:
        raise UserError(
            f"{options.source} knows the classes {known}, and {folder.path} has "
            f"{', '.join(folder.class_names)[:200]}; give the --root it was trained on"
        )
    return folder.mapping


def written(options: Options, outputs: Sequence[predictions.Paths]) -> list[Path]:
    """All files that may be written."""
    record = options.output / predictions.RECORD
    return [record, *(path for paths in outputs for path in paths)]


def inputs_of(options: Options, source: Path, paths: Sequence[Path]) -> list[Path]:
    """Photographs, the run's files or the weight file, and the CRF's parameters."""
    weights = [p for p in source.iterdir() if p.is_file()] if source.is_dir() else [source]
    params = [Path(options.crf_params)] if options.crf_params else []
    return [*paths, *weights, *params]


def settings_of(options: Options, source: Path, work: Work) -> dict[str, Any]:
    """What the results depend on, besides the photographs."""
    meta = work.found.meta
    crf = getattr(work.refine, "keywords", {})
    return {
        "weights of the fingerprint": meta["source"]["sha256"]
        if source.is_dir()
        else formats.sha256(source),
        "step": meta.get("step"),
        "average": options.average,
        **vars(inference_options(options, work.config)),
        **{f"crf {name}": str(value) for name, value in crf.items()},
        "probs": options.probs,
        "masks": "ids" if work.mapping is None else "raw",
        "submission": options.submission,
        "range": work.value_range,
    }


def inference_options(options: Options, config: Config) -> evaluation.InferenceOptions:
    """The typed options; a submission is padded and tiled as the run is scored."""
    asked = options.inference(config)
    return asked if options.submission else replace(asked, pad_to=None, tile=options.tile)


def predict(options: Options, work: Work, numbers: Sequence[int]) -> int:
    """Writes the results of these photographs; returns how many could not be read."""
    images: dict[int, Photograph] = {}
    bar = tqdm(total=len(numbers), unit="image", disable=None)

    def read() -> Iterator[tuple[int, Photograph]]:
        for number, image in evaluation.in_threads(read_or_tell, numbers, options.workers):
            if isinstance(image, UserError):
                bar.update()
                bar.write(f"left out: {image}", file=sys.stderr)
            else:
                images[number] = image
                yield number, image

    def read_or_tell(number: int) -> tuple[int, Photograph | UserError]:
        channels = work.config.data.channels
        try:
            photograph = work.paths[number]
            return number, photographs.read(
                photograph, channels=channels, value_range=work.value_range
            )
        except UserError as error:
            return number, error

    def finish(numbered: tuple[int, np.ndarray]) -> None:
        number, output = numbered
        write(work, number, images.pop(number), output)
        bar.update()

    whole = work.refine is not None or options.probs
    results = evaluation.outputs_of(
        work.found.model,
        work.found.variables,
        read(),
        inference_options(options, work.config),
        max_pixels=MAX_PIXELS,
        what="probs" if whole else "labels",
        on_device=work.refine is not None and evaluation.refines_on_devices(),
    )
    with bar:
        finished = sum(1 for _ in evaluation.in_threads(finish, results, options.workers))
    return len(numbers) - finished


def write(work: Work, number: int, image: Photograph, output: np.ndarray) -> None:
    """Refines and writes one photograph's probabilities or labels."""
    paths, class_names = work.outputs[number], work.found.class_names
    if work.refine is not None:
        output = work.refine(image, output)
    found = np.asarray(output.argmax(-1) if output.ndim == 3 else output)
    colors = visualization.palette(class_names, work.found.meta.get("class_colors"))
    if paths.probs is not None:
        with predictions.written_whole(paths.probs) as partial:
            np.save(partial, np.asarray(output))
    if paths.overlay is not None:
        shown = visualization.show_bands(image, segmenter.shown_bands(work.config))
        overlay = visualization.overlay(shown, found, class_names=class_names, colors=colors)
        with predictions.written_whole(paths.overlay) as partial:
            PILImage.fromarray(overlay).save(partial, quality=92)
    paths.labels.parent.mkdir(parents=True, exist_ok=True)
    with predictions.written_whole(paths.labels) as partial:
        if work.mapping is None:
            visualization.save_labels(partial, found, colors)
        else:
            PILImage.fromarray(work.mapping.encode(found, len(class_names))).save(partial)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
