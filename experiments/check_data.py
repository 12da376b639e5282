"""What is wrong with a data set, before training.

    python experiments/check_data.py ROOT
    python experiments/check_data.py ROOT --splits train --sample 200 --sheet pets.png

ROOT is a folder in VOC layout, or in another that deeplab_jax/data/layouts.py describes. Prints
counts, sizes, the share of every class, and each fault with its file; draws random photographs
with their masks. The report and the sheet, report.txt and contact_sheet.png, are left where
training keeps the prepared data set, below --prepared-dir.

Exit status 0: no faults; 1: faults; 2: there is no data set to check. Where report and sheet cannot
be written, a note says so.

About 5 ms a photograph of 480x360 on one core.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated

import cli
import numpy as np
import tyro
from PIL import Image

from deeplab_jax import visualization
from deeplab_jax.data import builders, checks, folders, images, listing, masks, prepare
from deeplab_jax.data.folders import Place


@dataclass(frozen=True)
class Options:
    root: Annotated[Path, tyro.conf.Positional]
    """Folder of the data set."""
    splits: tuple[str, ...] = ()
    """Splits to check; all where none is named."""
    sample: int | None = None
    """Photographs to read from each split; all by default."""
    sheet: Path | None = None
    """Where the random photographs with their masks are drawn; beside the report by default."""
    num_photographs: int = 12
    """Photographs on the sheet."""
    seed: int = 0
    """Seed of the choice of photographs, for the sample and for the sheet."""
    allow_one_class: bool = False
    """It is no fault that all pixels that count have one class; training refuses them."""
    channels: int | None = None
    """Channels of the photographs, as for training (--data.channels); None: they are RGB."""
    range: tuple[float, ...] | None = None
    """The values that become black and white in photographs of more than 8 bits a channel; with
    --channels they are measured where none are given."""
    shown_bands: tuple[int, ...] | None = None
    """Channels that the sheet shows as red, green and blue, or one as grey, counted from 0."""
    val_fraction: float | None = None
    """Where there is one split only: the part of it that becomes val, as for training."""
    val_groups: str | None = None
    """Regular expression of what photographs that stay together have in common in their names."""
    masks: str | None = None
    """Which files are the masks where several may be, as for training (--data.masks)."""
    prepared_dir: Path = Path("prepared")
    """Where archives are unpacked, as for training, and the report is left."""


def main(options: Options) -> None:
    named = vars(options).keys() & {field.name for field in fields(Place)}
    place = Place(**{name: getattr(options, name) for name in named})
    folder = builders.open_folder(place, options.splits)
    if options.channels is not None:
        names = options.splits or tuple(folder.splits)
        split = "train" if "train" in names else names[0]
        pairs = checks.choose(folders.read_split(folder, split), options.sample, options.seed)
        folder, _ = builders.measured(folder, pairs, "skip")
    drawn = {"sample": options.sample, "seed": options.seed}
    bar = partial(cli.progress, what="read")
    report = checks.check_dataset(
        folder, options.splits, **drawn, allow_one_class=options.allow_one_class, progress=bar
    )
    text = checks.describe(report)
    print(text)
    left = prepare.path_of(folder.path, options.prepared_dir)
    write_or_tell(left / "report.txt", lambda path: path.write_text(text + "\n", "utf-8"))
    sheet = draw_sheet(options, report)
    if sheet is not None and options.channels is not None:
        print(f"shown: {visualization.title_of_bands(options.channels, options.shown_bands)}")
    if sheet is not None:
        path = options.sheet or left / "contact_sheet.png"
        kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
        write_or_tell(path, partial(sheet.save, format=kind))
    sys.exit(1 if any(finding.is_fault for finding in report.findings) else 0)


def write_or_tell(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file and prints where it is, or says on stderr why it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    except OSError as error:
        print(f"note: {path} is not written ({error.strerror})", file=sys.stderr)
    else:
        print(f"written: {path}")


def draw_sheet(options: Options, report: checks.Report) -> Image.Image | None:
    """Photographs without faults, drawn at random from all splits, beside their masks.

    None where there are none.
    """
    folder, place = report.folder, report.folder.place
    sound = [
        (split.name, read.pair)
        for split in report.splits
        for read in split.pairs
        if read.pair.mask is not None and not any(f.is_fault for f in read.findings)
    ]
    if not sound or options.num_photographs < 1:
        return None
    colors = visualization.palette(folder.class_names, folder.class_colors)
    rules, rows, captions = masks.rules_of(folder), [], []
    for split, pair in checks.choose(sound, options.num_photographs, options.seed):
        image = images.read(pair.photograph, channels=place.channels, value_range=place.range)
        shown = visualization.show_bands(image, options.shown_bands)
        labels = masks.read(pair.mask, rules)
        mixed = np.rint(0.3 * shown + 0.7 * visualization.colorize(labels, colors))
        rows.append((shown, mixed.astype(np.uint8), labels))
        captions.append(listing.printable(f"{split}: {pair.photograph.name}"))
    titles = ("photograph", "mask over it", "mask")
    page = visualization.sheet(
        rows, folder.class_names, titles=titles, captions=captions, colors=colors
    )
    return Image.fromarray(page)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
