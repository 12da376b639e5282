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

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Annotated

import cli
import numpy as np
import tyro
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from deeplab_jax import visualization
from deeplab_jax.data import builders, checks, folders, images, listing, masks, prepare


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


SIDE, GAP, TITLE = 300, 8, 20
"""Sizes on the sheet in pixels: a picture, the space between pictures, the line above them."""


def main(options: Options) -> None:
    reading = folders.Reading(
        options.range,
        options.val_fraction,
        options.val_groups,
        channels=options.channels,
        masks=options.masks,
    )
    if options.channels is not None:
        reading = measured(options, reading)
    report = checks.check_dataset(
        options.root,
        prepared_dir=options.prepared_dir,
        splits=options.splits,
        sample=options.sample,
        seed=options.seed,
        allow_one_class=options.allow_one_class,
        reading=reading,
        progress=partial(tqdm, leave=False, disable=None),
    )
    text = checks.describe(report)
    print(text)
    folder = prepare.path_of(report.folder.path, options.prepared_dir)
    write_or_tell(folder / "report.txt", lambda file: file.write((text + "\n").encode()))
    sheet = draw_sheet(options, report)
    if sheet is not None and options.channels is not None:
        print(f"shown: {visualization.title_of_bands(options.channels, options.shown_bands)}")
    if sheet is not None:
        path = options.sheet or folder / "contact_sheet.png"
        kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
        write_or_tell(path, partial(sheet.save, format=kind))
    sys.exit(1 if any(finding.is_fault for finding in report.findings) else 0)


def measured(options: Options, reading: folders.Reading) -> folders.Reading:
    """The reading with the range of the split that training would measure; prints range and mean of
    each channel."""
    folder = builders.open_folder(options.root, options.prepared_dir, options.splits, reading)
    names = options.splits or tuple(folder.splits)
    split = "train" if "train" in names else names[0]
    pairs = checks.choose(folders.read_split(folder, split), options.sample, options.seed)
    found = images.measure(
        [pair.photograph for pair in pairs],
        channels=options.channels,
        value_range=reading.range,
        bad_data="skip",
        progress=partial(tqdm, desc="measure channels", leave=False, disable=None),
    )
    print("\n".join(found.describe()))
    return replace(reading, range=found.value_range)


def write_or_tell(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file and prints where it is, or says on stderr why it cannot be written."""
    buffer = io.BytesIO()
    write(buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        print(f"note: {path} is not written ({error.strerror})", file=sys.stderr)
    else:
        print(f"written: {path}")


def draw_sheet(options: Options, report: checks.Report) -> Image.Image | None:
    """Photographs without faults, drawn at random from all splits, beside their masks.

    None where there are none.
    """
    folder = report.folder
    sound = [
        (split.name, look.pair)
        for split in report.splits
        for look in split.pairs
        if look.pair.mask is not None and not any(f.is_fault for f in look.findings)
    ]
    if not sound or options.num_photographs < 1:
        return None
    colors = visualization.palette(folder.class_names, folder.class_colors)
    rules = masks.rules_of(folder)
    cells, seen = [], set()
    for split, pair in checks.choose(sound, options.num_photographs, options.seed):
        image = images.read(
            pair.photograph, channels=folder.channels, value_range=folder.value_range
        )
        shown = visualization.show_bands(image, options.shown_bands)
        labels = masks.read(pair.mask, rules)
        seen |= set(np.unique(labels).tolist())
        title = listing.printable(f"{split}: {pair.photograph.name}")
        cells.append(draw_pair(title, shown, labels, colors))
    page = set_in_rows(cells, columns=2)
    present = sorted(label for label in seen if label < len(folder.class_names))
    legend = visualization.legend(present, folder.class_names, width=page.shape[1], colors=colors)
    return Image.fromarray(np.concatenate([page, legend]))


def draw_pair(
    title: str, image: np.ndarray, labels: np.ndarray, colors: visualization.Palette
) -> np.ndarray:
    """A photograph and, on its right, its mask laid over it; void is pale.

    Class ids stand in the regions.
    """
    mask = np.rint(0.3 * image + 0.7 * visualization.colorize(labels, colors)).astype(np.uint8)
    pictures = [ImageOps.contain(Image.fromarray(p), (SIDE, SIDE)) for p in (image, mask)]
    shown = np.asarray(Image.fromarray(labels).resize(pictures[1].size, Image.Resampling.NEAREST))
    pictures[1] = Image.fromarray(visualization.write_ids(np.asarray(pictures[1]), shown))
    page = Image.new("RGB", (2 * SIDE + 3 * GAP, pictures[0].height + TITLE + GAP), "white")
    ImageDraw.Draw(page).text((GAP, 2), title, "black", ImageFont.load_default(TITLE - 6))
    for i, picture in enumerate(pictures):
        page.paste(picture, (GAP + i * (SIDE + GAP), TITLE))
    return np.asarray(page)


def set_in_rows(cells: list[np.ndarray], *, columns: int) -> np.ndarray:
    """Pictures of one width in rows, each as high as its highest picture."""
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return np.concatenate([join(row, columns) for row in rows])


def join(row: list[np.ndarray], columns: int) -> np.ndarray:
    height, width = max(cell.shape[0] for cell in row), row[0].shape[1]
    page = np.full((height, columns * width, 3), 255, np.uint8)
    for i, cell in enumerate(row):
        page[: cell.shape[0], i * width : (i + 1) * width] = cell
    return page


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
