"""Refine a folder of masks with the fully connected CRF: annotations, scribbles, pseudo-masks.

    python experiments/refine_masks.py photographs masks
    python experiments/refine_masks.py photographs scribbles --gt-prob 0.95 --zero-unsure

A mask is a PNG of class ids (palette or grey, 255 for unknown) and has its photograph's name. The
refined masks, of the same kind, go to the folder MASKS_refined; MASKS_refined_report holds the
settings, the share of pixels that changed in each mask, and sheet.png with the masks that changed
most, before and after. The same command typed again goes on where it stopped; other options need
another --output, or --overwrite. Each GPU refines a mask at a time; on CPUs, and on the host of
TPUs, a few are refined at once.
"""

import json
import os
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cli
import tyro


@dataclass(frozen=True)
class Options:
    images: Annotated[Path, tyro.conf.Positional]
    """Folder of photographs."""
    masks: Annotated[Path, tyro.conf.Positional]
    """Folder of masks, PNG of class ids."""
    output: Path | None = None
    """Folder of the refined masks; MASKS_refined where none is given."""
    overwrite: bool = False
    """Refine all masks again, whatever the folder holds of them."""
    crf_params: str | None = None
    """File of search_crf.py or name of published parameters; scribbles: those of pydensecrf's
    example, for scribbles; None: for masks that are mostly right."""
    gt_prob: float | None = None
    """How probable the label of the mask is; scribbles deserve 0.9 and more. None: 0.5, or 0.7 in a
    mask of two labels."""
    zero_unsure: bool = False
    """0 means unknown, as 255 does."""
    fill_unsure: bool = True
    """Give unknown pixels a label."""
    num_iterations: int = 5
    """Mean-field updates."""
    num_photographs: int = 8
    """Photographs on the sheet, with their masks; 0: no sheet."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    given = cli.parse(Options, __doc__)

import jax
import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from deeplab_jax import crf, storage, visualization
from deeplab_jax.data import photographs
from deeplab_jax.types import UserError

SETTINGS = ("crf_params", "gt_prob", "zero_unsure", "fill_unsure", "num_iterations")
"""Options that the refined masks depend on."""


def main(options: Options) -> None:
    pairs = find_pairs(options.images, options.masks)
    output = options.output or options.masks.with_name(options.masks.name + "_refined")
    report = output.with_name(output.name + "_report")
    if options.overwrite:
        forget(report, [output / mask.name for _, mask in pairs])
    remember(report, options)
    output.mkdir(parents=True, exist_ok=True)
    left = [pair for pair in pairs if not (output / pair[1].name).exists()]
    if len(left) < len(pairs):
        print(f"{len(pairs) - len(left)} of {len(pairs)} masks are refined already")
    failures = []
    with (report / "changes.jsonl").open("a") as changes:
        for name, result in refine_all(options, left, output):
            if isinstance(result, UserError):
                failures.append(str(result))
                continue
            changes.write(json.dumps({"mask": name, "changed": result}) + "\n")
            changes.flush()
    if options.num_photographs:
        draw_sheet(report, pairs, output, options.num_photographs)
    print(f"{len(pairs) - len(failures)} masks refined: {output}; report: {report}")
    if failures:
        raise UserError(
            f"{len(failures)} masks could not be refined, the first because {failures[0]}; "
            "call the script again for them"
        )


def find_pairs(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """Each mask with its photograph, which has the same name before the suffix."""
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(f"expected two folders, of photographs and of masks; {folder} is none")
    by_stem = {path.stem: path for path in photographs.find([images])}
    found = sorted(path for path in masks.iterdir() if path.suffix.lower() == ".png")
    if not found:
        raise UserError(f"{masks} holds no masks (.png)")
    missing = [path.name for path in found if path.stem not in by_stem]
    if missing:
        raise UserError(
            f"{images} has no photograph for {len(missing)} of {len(found)} masks, "
            f"such as {missing[0]}"
        )
    return [(by_stem[path.stem], path) for path in found]


def forget(report: Path, targets: list[Path]) -> None:
    """Removes the settings and changes of earlier commands, and the masks that they refined."""
    for path in (report / "settings.json", report / "changes.jsonl", *targets):
        path.unlink(missing_ok=True)


def remember(report: Path, options: Options) -> None:
    """Writes the settings, or refuses to mix masks that were refined with others."""
    settings = {name: asdict(options)[name] for name in SETTINGS}
    path = report / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{report} belongs to masks refined with {name} {before.get(name)}, and "
                    f"{value} was asked for: choose another --output, or give --overwrite "
                    "to refine all masks again"
                )
        return
    report.mkdir(parents=True, exist_ok=True)
    with storage.written_whole(path) as partial:
        partial.write_text(json.dumps(settings, indent=2) + "\n")


def refine_all(
    options: Options, pairs: list[tuple[Path, Path]], output: Path
) -> Iterator[tuple[str, float | UserError]]:
    """Names and shares of changed pixels, as masks get ready."""
    devices = queue.SimpleQueue()
    host = cli.crf_host()
    workers = jax.local_devices() if host is None else [host]
    at_once = 1 if workers[0].platform != "cpu" else min(4, os.cpu_count() or 1)
    slots = [device for device in workers for _ in range(at_once)]
    for device in slots:
        devices.put(device)

    def refine_next(pair):
        device = devices.get()
        try:
            with jax.default_device(device):
                return refine_one(options, *pair, output / pair[1].name)
        except UserError as error:
            return error
        finally:
            devices.put(device)

    with (
        ThreadPoolExecutor(len(slots)) as threads,
        tqdm(total=len(pairs), unit="mask", disable=None) as bar,
    ):
        first, rest = pairs[:1], pairs[1:]  # the first compiles for the others
        waiting = {}
        for part in (first, rest):
            waiting = {threads.submit(refine_next, pair): pair for pair in part}
            for done in as_completed(waiting):
                bar.update()
                yield waiting[done][1].name, done.result()


def choose_params(name: str | None) -> crf.CRFParams:
    if name is None:
        return crf.LABEL_PARAMS
    return crf.SCRIBBLE_PARAMS if name == "scribbles" else crf.read_params(name)


def refine_one(options: Options, image_path: Path, mask_path: Path, target: Path) -> float:
    """Refines and writes a mask; the share of its pixels that changed."""
    image, (labels, palette) = photographs.read(image_path), read_mask(mask_path)
    if image.shape[:2] != labels.shape:
        raise UserError(
            f"{mask_path} is {labels.shape[1]} x {labels.shape[0]} and its photograph "
            f"{image.shape[1]} x {image.shape[0]}"
        )
    params = choose_params(options.crf_params)
    refined = crf.refine_labels(
        image,
        labels,
        params,
        gt_prob=options.gt_prob,
        zero_unsure=options.zero_unsure,
        fill_unsure=options.fill_unsure,
        num_iterations=options.num_iterations,
    )
    picture = PILImage.fromarray(refined)
    if palette is not None:
        picture = picture.convert("P")
        picture.putpalette(palette)
    with storage.written_whole(target) as partial:
        picture.save(partial, format="PNG")
    return float((refined != labels).mean())


def read_mask(path: Path) -> tuple[np.ndarray, list[int] | None]:
    """Class ids, uint8 `[h, w]`, and the palette where the file has one."""
    try:
        with PILImage.open(path, formats=("PNG",)) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise UserError(
                    f"{path} is a picture of mode {picture.mode}; expected class ids "
                    "(a palette or grey PNG of 8 bits)"
                )
            palette = picture.getpalette() if picture.mode == "P" else None
            return np.asarray(picture).astype(np.uint8), palette
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read: {error}") from None


def draw_sheet(report: Path, pairs: list[tuple[Path, Path]], output: Path, number: int) -> None:
    """The masks that changed most, before and after, beside their photographs."""
    lines = (report / "changes.jsonl").read_text().splitlines()
    changed = {}
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # cut off as the script was killed
            continue
        changed[entry["mask"]] = entry["changed"]
    by_name = {mask.name: (image, mask) for image, mask in pairs if (output / mask.name).exists()}
    names = sorted(changed.keys() & by_name.keys(), key=lambda name: -changed[name])[:number]
    if not names:
        return
    rows = []
    for name in names:
        image, mask = by_name[name]
        pictures = [read_mask(path)[0] for path in (mask, output / name)]
        rows.append([photographs.read(image), *pictures])
    captions = [f"{name}: {changed[name]:.1%} of the pixels changed" for name in names]
    sheet = visualization.sheet(
        rows, [""] * 255, titles=("photograph", "before", "after"), captions=captions
    )
    PILImage.fromarray(sheet).save(report / "sheet.png")


if __name__ == "__main__":
    cli.run(main, given)
