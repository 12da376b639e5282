"""Segment photographs: labels as palette PNG, overlays with a legend, probabilities on request.

    python experiments/predict.py voc12 photograph.jpg --crf
    python experiments/predict.py runs/small holiday --crf --output segmented
    python experiments/predict.py --list-weights

voc12 is a name of published weights, which are downloaded once; --list-weights shows all names.

Each photograph gets NAME.png (class ids) and NAME_overlay.jpg, on request NAME_probs and
NAME_entropy (0: sure, 1: all classes are alike). A GeoTIFF gets NAME.tif too, with class ids in its
coordinate system, which --maps tif keeps as well.

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

from deeplab_jax import evaluation, predictions, segmenter, start, storage, visualization
from deeplab_jax.choices import MAX_PIXELS, Server
from deeplab_jax.config import Config
from deeplab_jax.data import folders, labels, public
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
    """Folder of the results, see above."""
    overwrite: bool = False
    """Remove what the folder holds of earlier commands, and predict all photographs."""
    probs: bool = False
    """Write class probabilities too."""
    entropy: bool = False
    """Write how unsure the network is of each pixel too."""
    maps: predictions.MapFormat = "npy"
    """Files of --probs and --entropy: float32 arrays (npy), grey PNGs of 16 bits whose white is 1,
    with the classes below each other (png), or float32 TIFFs (tif)."""
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
    how: evaluation.InferenceOptions
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
        paths, outputs = of_photographs(options)
    folder = options.output
    predictions.refuse_overwriting([folder], [path for path in options.images if path.is_dir()])
    # Neither photographs nor the files of the run, the weights or the CRF's parameters.
    weights = [p for p in source.iterdir() if p.is_file()] if source.is_dir() else [source]
    params = [Path(options.crf_params)] if options.crf_params else []
    written = [folder / predictions.RECORD, *(path for of_one in outputs for path in of_one)]
    predictions.refuse_overwriting(written, [*paths, *weights, *params])
    found, config = options.load(source)
    how = options.inference(config)
    if not options.submission:  # which is padded and tiled as the run is scored
        how = replace(how, pad_to=None, tile=options.tile)
    mapping, refine = mapping_of(options, found, config), options.refine(found, config)
    value_range = options.range or config.data.range
    work = Work(found, config, refine, how, paths, outputs, value_range, mapping)
    with predictions.hold(folder):
        settings = settings_of(options, source, work)
        numbers = predictions.find_unfinished(
            folder, settings, paths, outputs, overwrite=options.overwrite
        )
        if len(numbers) < len(paths):
            there = len(paths) - len(numbers)
            print(f"going on in {folder}: {there} of {len(paths)} photographs are done")
        left_out = predict(options, work, numbers)
    if left_out:
        raise UserError(
            f"{left_out} of {len(paths)} photographs could not be read, they are named above; the "
            f"other {len(paths) - left_out} are segmented: {folder}"
        )
    counted = "1 photograph" if len(paths) == 1 else f"{len(paths)} photographs"
    print(f"{counted} segmented: {folder}")
    if options.submission is not None:
        archive = predictions.pack(options.submission, folder, outputs)
        print(f"{archive} is for the test server of {options.submission}")


def of_photographs(options: Options) -> tuple[list[Path], list[predictions.Paths]]:
    """The photographs that were given, and where their results are written."""
    paths, unused = photographs.find(options.images)
    for sentence in unused:
        print(f"note: {sentence}")
    if not any(path.exists() for path in paths):  # before weights are downloaded
        raise UserError(f"there is no photograph {paths[0]}; give files, or folders of them")
    maps = {kind: options.maps for kind in ("probs", "entropy") if getattr(options, kind)}
    outputs = []
    for path in paths:
        geo = path.suffix.lower() in TIFFS and bool(photographs.read_geo_tags(path))
        outputs.append(predictions.paths_of(options.output, path, maps=maps, georeferenced=geo))
    return paths, outputs


TIFFS = (".tif", ".tiff")
CLASSES = {"voc": VOC_CLASS_NAMES, "cityscapes": tuple(public.CITYSCAPES.values())}
"""Of the test servers."""


def of_split(options: Options, config: Config) -> tuple[list[Path], list[predictions.Paths]]:
    """The photographs of the split for a test server, and where their masks are written."""
    if options.images or options.probs or options.entropy:
        raise UserError(
            "--submission takes the photographs of --split and writes masks alone; leave out the "
            "photographs, --probs and --entropy"
        )
    folder = start.open_scored(
        config, (options.split,), root=options.root, prepared_dir=options.prepared_dir
    )
    pairs = folders.read_split(folder, options.split)
    which = {"split": options.split, "competition": options.competition}
    named = [pair.name for pair in pairs]
    outputs = predictions.submission(options.submission, options.output, named, **which)
    return [pair.photograph for pair in pairs], outputs


def mapping_of(options: Options, found: Segmenter, config: Config) -> labels.LabelMapping | None:
    """From class ids to what the masks are to hold; None: class ids."""
    server, known = options.submission, ", ".join(found.class_names)[:200]
    if server is not None and found.class_names != CLASSES[server]:
        raise UserError(
            f"the test server of {server} wants its {len(CLASSES[server])} classes, and "
            f"{options.source} knows {known}"
        )
    if options.masks == "ids" and server != "cityscapes":
        return None
    folder = start.open_scored(config, (), root=options.root, prepared_dir=options.prepared_dir)
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


def settings_of(options: Options, source: Path, work: Work) -> dict[str, Any]:
    """What the results depend on, besides the photographs."""
    meta, crf = work.found.meta, getattr(work.refine, "keywords", {})
    own = formats.sha256(source) if source.is_file() else meta["source"]["sha256"]
    maps = {"maps": options.maps} if options.probs or options.entropy else {}
    return {
        "weights of the fingerprint": own,
        "step": meta.get("step"),
        "average": options.average,
        **vars(work.how),
        **{f"crf {name}": str(value) for name, value in crf.items()},
        **{"probs": options.probs, "entropy": options.entropy, **maps},
        "masks": "ids" if work.mapping is None else "raw",
        "submission": options.submission,
        "range": work.value_range,
    }


def predict(options: Options, work: Work, numbers: Sequence[int]) -> int:
    """Writes the results of these photographs; returns how many could not be read."""
    images: dict[int, Photograph] = {}

    def read(number: int) -> tuple[int, Photograph | UserError]:
        try:
            channels = {"channels": work.config.data.channels, "value_range": work.value_range}
            return number, photographs.read(work.paths[number], **channels)
        except UserError as error:
            return number, error

    def read_all() -> Iterator[tuple[int, Photograph]]:
        for number, image in evaluation.in_threads(read, numbers, options.workers):
            if isinstance(image, UserError):
                tqdm.write(f"left out: {image}", file=sys.stderr)
            else:
                images[number] = image
                yield number, image

    results = evaluation.outputs_of(
        work.found.model,
        work.found.variables,
        read_all(),
        work.how,
        max_pixels=MAX_PIXELS,
        what="probs" if work.refine or options.probs or options.entropy else "labels",
        on_device=work.refine is not None and evaluation.refines_on_devices(),
    )
    written = evaluation.in_threads(
        lambda numbered: write(work, numbered[0], images.pop(numbered[0]), numbered[1]),
        results,
        options.workers,
    )
    bar = cli.progress(written, len(numbers), what="segmented")
    return len(numbers) - sum(1 for _ in bar)


def write(work: Work, number: int, image: Photograph, output: np.ndarray) -> None:
    """Refines and writes one photograph's probabilities or labels."""
    paths, class_names = work.outputs[number], work.found.class_names
    if work.refine is not None:
        output = work.refine(image, output)
    output = np.asarray(output)
    found = output.argmax(-1) if output.ndim == 3 else output
    colors = visualization.palette(class_names, work.found.meta.get("class_colors"))
    geo_tags = photographs.read_geo_tags(work.paths[number]) if paths.georeferenced else {}
    if paths.probs is not None:
        predictions.write_map(paths.probs, output, geo_tags)
    if paths.entropy is not None:
        predictions.write_map(paths.entropy, predictions.entropy(output), geo_tags)
    if paths.overlay is not None:
        shown = visualization.show_bands(image, segmenter.shown_bands(work.config))
        overlay = visualization.overlay(shown, found, class_names=class_names, colors=colors)
        with storage.written_whole(paths.overlay) as partial:
            PILImage.fromarray(overlay).save(partial, quality=92)
    if paths.georeferenced is not None:
        with storage.written_whole(paths.georeferenced) as partial:
            PILImage.fromarray(found.astype(np.uint8)).save(partial, tiffinfo=geo_tags)
    paths.labels.parent.mkdir(parents=True, exist_ok=True)
    with storage.written_whole(paths.labels) as partial:
        if work.mapping is None:
            visualization.save_labels(partial, found, colors)
        else:
            PILImage.fromarray(work.mapping.encode(found, len(class_names))).save(partial)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
