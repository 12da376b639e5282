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
is 2. The same command typed again goes on where it was. The output folder belongs to one command:
other options or photographs need another --output, or --overwrite.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import cli
import tyro
from crf_options import CRFOptions

from deeplab_jax.choices import MAX_PIXELS, OVERLAP, Server


@dataclass(frozen=True)
class Options(CRFOptions):
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, a weight file, or a name of published weights (--list-weights)."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Photographs, or folders of them; hidden files are left out."""
    submission: Server | None = None
    """Test server to write masks for; photographs are then those of --split of the data set."""
    split: str = "test"
    """Split of the data set, for --submission."""
    competition: Literal[5, 6] = 6
    """Competition of PASCAL VOC's server: 6, or 5 for methods trained on VOC's own data alone."""
    root: Path | None = None
    """Data set, for --submission and --masks raw; that of the run where none is given."""
    masks: Literal["ids", "raw"] = "ids"
    """What NAME.png holds: class ids with a palette, or the raw ids or colours of the data set's
    own masks, by its mapping.txt. Cityscapes' server is given raw ids."""
    prepared_dir: Path = Path("prepared")
    """Where archives of the data set are unpacked."""
    output: Path = Path("predictions")
    """Folder for NAME.png (class ids), NAME_overlay.jpg and, on request, NAME_probs.npy."""
    overwrite: bool = False
    """Predict all photographs again, whatever the folder holds of them."""
    average: bool = False
    """Predict with the averaged parameters of a run that was trained with --ema-decay."""
    crf: bool = False
    """Refine with the fully connected CRF."""
    crf_params: str | None = None
    """File that search_crf.py left, or the name of a published set of parameters; where none is
    given, what the run learnt (--crf-iterations), else the set published for its network."""
    probs: bool = False
    """Write class probabilities too, float32 [h, w, classes]."""
    scales: tuple[float, ...] | None = None
    """Average the probabilities of the network run at these sizes; as the run is scored where none
    is given."""
    flip: bool = False
    """Average with the mirrored photograph."""
    tile: int | None = None
    """Predict photographs that a square of this side does not cover in such tiles."""
    overlap: float = OVERLAP
    """Part of its side that a tile shares at least with the next."""
    max_pixels: int = MAX_PIXELS
    """Without --tile, photographs with more pixels are predicted in tiles of this area."""
    range: tuple[float, ...] | None = None
    """The values that become black and white in photographs of more than 8 bits a channel, LOW HIGH
    or such a pair for each channel; where none are given, those that the run was trained with."""
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
import splits
from PIL import Image as PILImage
from tqdm import tqdm

from deeplab_jax import crf, evaluation, predictions, runs, visualization
from deeplab_jax.config import Config
from deeplab_jax.data import builders, folders, images, labels, public
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import VOC_CLASS_NAMES, Image, Photograph, UserError
from deeplab_jax.weights import names, sources


def main(options: Options) -> None:
    cli.check_positive(workers=options.workers)
    paths, left_out = ([], []) if options.submission else images.find(options.images)
    for sentence in left_out:
        print(f"note: {sentence}")
    if paths and not any(path.exists() for path in paths):  # before weights are downloaded
        raise UserError(f"there is no photograph {paths[0]}; give files, or folders of photographs")
    options = replace(options, source=names.resolve(options.source))
    if options.submission:
        options = replace(options, masks="raw" if options.submission == "cityscapes" else "ids")
        paths, outputs = of_split(options)
    else:
        outputs = [predictions.paths_of(options.output, p, probs=options.probs) for p in paths]
    predictions.refuse_folder_of_photographs(options.output, options.images)
    predictions.refuse_overwriting(written(options, outputs), inputs_of(options, paths))
    model, variables, meta = runs.load(options.source, average=options.average)
    config = runs.config_of(options.source, meta)
    options = replace(
        options,
        range=options.range or config.data.range,
        crf_bands=options.crf_bands or runs.crf_bands(config),
        scales=options.scales or config.eval.scales,
        flip=options.flip or config.eval.flip,
    )
    mapping = mapping_of(options, meta)
    params = crf.choose_params(options.crf_params, learnt=meta.get("crf"), model=meta["model"])
    settings = settings_of(options, params, meta)
    with predictions.hold(options.output):
        numbers = predictions.begin(
            options.output, settings, paths, outputs, overwrite=options.overwrite
        )
        if len(numbers) < len(paths):
            there = len(paths) - len(numbers)
            print(f"going on in {options.output}: {there} of {len(paths)} photographs are done")
        left_out = predict(
            options, config, paths, outputs, numbers, model, variables, params, meta, mapping
        )
    if left_out:
        raise UserError(
            f"{left_out} of {len(paths)} photographs could not be read, they are named above; the "
            f"other {len(paths) - left_out} are segmented: {options.output}"
        )
    counted = "1 photograph" if len(paths) == 1 else f"{len(paths)} photographs"
    print(f"{counted} segmented: {options.output}")
    if options.submission:
        archive = predictions.pack(options.submission, options.output, outputs)
        print(f"{archive} is for the test server of {options.submission}")


CLASSES = {"voc": VOC_CLASS_NAMES, "cityscapes": tuple(public.CITYSCAPES.values())}
"""Of the test servers."""


def of_split(options: Options) -> tuple[list[Path], list[predictions.Paths]]:
    """The photographs of the split for a test server, and where their masks are written."""
    if options.images or options.probs:
        raise UserError(
            "--submission takes the photographs of --split and writes masks alone; leave out the "
            "photographs, and --probs"
        )
    pairs = folders.read_split(open_folder(options, (options.split,)), options.split)
    wanted = [pair.name for pair in pairs]
    outputs = predictions.submission(
        options.submission,
        options.output,
        wanted,
        split=options.split,
        competition=options.competition,
    )
    return [pair.photograph for pair in pairs], outputs


def open_folder(options: Options, names: Sequence[str] = ()) -> folders.Folder:
    config = runs.config_of(options.source, {})
    root = splits.find_root(config, options.root, options.prepared_dir)
    return builders.open_folder(root, options.prepared_dir, names)


def mapping_of(options: Options, meta: dict[str, Any]) -> labels.LabelMapping | None:
    """From class ids to what the masks are to hold; None: class ids.

    Raises:
      UserError: the network's classes are not those of the server or the data set, or the data set
        has no mapping.
    """
    names = tuple(meta["class_names"])
    if options.submission and names != CLASSES[options.submission]:
        raise UserError(
            f"the test server of {options.submission} wants its {len(CLASSES[options.submission])} "
            f"classes, and {options.source} knows {', '.join(names)[:200]}"
        )
    if options.masks == "ids":
        return None
    folder = open_folder(options)
    if folder.mapping is None:
        raise UserError(
            f"{folder.path} has no mapping of raw ids or colours; leave out --masks raw"
        )
    if tuple(folder.class_names) != names:
        raise UserError(
            f"{options.source} knows the classes {', '.join(names)[:200]}, and {folder.path} has "
            f"{', '.join(folder.class_names)[:200]}; give the --root it was trained on"
        )
    return folder.mapping


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
        "crf_normalization": options.crf_normalization if options.crf else None,
        "crf_max_pixels": options.crf_max_pixels if options.crf else None,
        "crf_prune_below": options.crf_prune_below if options.crf else None,
        **{name: getattr(options, name) for name in ("probs", "scales", "flip", "tile", "overlap")},
        "max_pixels": options.max_pixels,
        "masks": options.masks,
        "submission": options.submission,
        "range": options.range,
        **({"crf_bands": options.crf_bands} if options.crf and options.crf_bands else {}),
        "average": options.average or None,
    }


def predict(
    options: Options,
    config: Config,
    paths: Sequence[Path],
    outputs: Sequence[predictions.Paths],
    numbers: Sequence[int],
    model: DeepLabV2,
    variables: Any,
    params: crf.CRFParams,
    meta: dict[str, Any],
    mapping: labels.LabelMapping | None,
) -> int:
    """Writes the results of these photographs; returns how many could not be read."""
    workers = options.workers or os.cpu_count() or 1
    images: dict[int, Photograph] = {}
    refine = cli.refine_function() if options.crf else None
    left_out = 0
    reading = {"channels": config.data.channels, "value_range": options.range}
    bar = tqdm(total=len(numbers), unit="image", disable=None)

    def read() -> Iterator[tuple[int, Photograph]]:
        nonlocal left_out
        for number, image in evaluation.in_threads(read_or_tell, numbers, workers):
            if isinstance(image, UserError):
                left_out += 1
                bar.update()
                bar.write(f"left out: {image}", file=sys.stderr)
            else:
                images[number] = image
                yield number, image

    def read_or_tell(number: int) -> tuple[int, Photograph | UserError]:
        try:
            return number, images.read(paths[number], **reading)
        except UserError as error:
            return number, error

    def finish(numbered: tuple[int, np.ndarray]) -> None:
        number, output = numbered
        image = images.pop(number)
        if refine is not None:
            output = refine(image, output, params, **options.of_refine())
            output = np.asarray(output if options.probs else output.argmax(-1))
        shown = visualization.show_bands(image, runs.shown_bands(config))
        write(outputs[number], shown, output, meta, mapping)

    results = evaluation.outputs_of(
        model,
        variables,
        read(),
        inference_options(options, config),
        max_pixels=options.max_pixels,
        what="probs" if options.crf or options.probs else "labels",
        on_device=options.crf and evaluation.refines_on_devices(),
    )
    with bar:
        for _ in evaluation.in_threads(finish, results, workers):
            bar.update()
    return left_out


def inference_options(options: Options, config: Config) -> evaluation.InferenceOptions:
    """The typed options; a submission is padded and tiled as the run is scored."""
    scored = config.eval if options.submission else None
    return evaluation.InferenceOptions(
        pad_to=scored and scored.pad_to,
        scales=options.scales,
        flip=options.flip,
        tile=options.tile or (scored and scored.tile),
        overlap=options.overlap,
    )


def write(
    paths: predictions.Paths,
    image: Image,
    output: np.ndarray,
    meta: dict[str, Any],
    mapping: labels.LabelMapping | None,
) -> None:
    """`output` holds probabilities or labels; `meta` names the classes, see runs.load."""
    class_names = meta["class_names"]
    colors = visualization.palette(class_names, meta.get("class_colors"))
    found = output.argmax(-1) if output.ndim == 3 else output
    if paths.probs is not None:
        with predictions.written_whole(paths.probs) as partial:
            np.save(partial, output)
    if paths.overlay is not None:
        overlay = visualization.overlay(image, found, class_names=class_names, colors=colors)
        with predictions.written_whole(paths.overlay) as partial:
            PILImage.fromarray(overlay).save(partial, quality=92)
    paths.labels.parent.mkdir(parents=True, exist_ok=True)
    with predictions.written_whole(paths.labels) as partial:
        if mapping is None:
            visualization.save_labels(partial, found, colors)
        else:
            PILImage.fromarray(mapping.encode(found, len(class_names))).save(partial)


if __name__ == "__main__":
    cli.run(main, given)
