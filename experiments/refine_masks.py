"""Refine masks with the fully connected CRF: annotations, scribbles, pseudo-masks, objects.

    python experiments/refine_masks.py photographs masks
    python experiments/refine_masks.py photographs scribbles --gt-prob 0.95 --zero-unsure
    python experiments/refine_masks.py photographs annotations.json

MASKS holds for each photograph, under its name, one of these, and the same comes out of it:
a mask of class ids as training reads it, 255 for unknown (out of it comes a PNG, with the palette
of a palette PNG); probabilities .npy [rows, columns, classes] (class ids as PNG); a folder with a
mask for each object, or a JSON with run lengths or outlines of each, as large models write them. Or
MASKS is a COCO JSON. Objects are refined one by one, and come out of a JSON as run lengths.

The refined masks go to MASKS_refined; MASKS_refined_report holds the settings, the share of pixels
that changed in each mask, and sheet.png with the masks that changed most, before and after. The
same command typed again goes on where it stopped, and refines again what has changed since; other
options need another --output, or --overwrite. Each GPU refines a mask at a time; on CPUs, and on
the host of TPUs, a few are refined at once.
"""

import hashlib
import json
import os
import queue
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cli
import jax
import numpy as np
import tyro
from PIL import Image as PILImage

from deeplab_jax import crf, evaluation, storage, visualization, workdir
from deeplab_jax.crf import refinement
from deeplab_jax.data import coco, folders, images, listing, masks
from deeplab_jax.types import UserError


@dataclass(frozen=True)
class Options:
    images: Annotated[Path, tyro.conf.Positional]
    """Folder of photographs."""
    masks: Annotated[Path, tyro.conf.Positional]
    """Folder of masks, or a COCO JSON."""
    output: Path | None = None
    """Folder of the refined masks, or JSON; MASKS_refined where none is given."""
    overwrite: bool = False
    """Refine all masks again, whatever the folder holds of them."""
    crf_params: str | None = None
    """File of search_crf.py or name of published parameters; scribbles: those of pydensecrf's
    example, for scribbles; None: for masks that are mostly right."""
    gt_prob: float | None = None
    """How probable the label of the mask is; scribbles deserve 0.9 and more. None: 0.5, or 0.7 in a
    mask of two labels."""
    zero_unsure: bool = False
    """0 means unknown, as 255 does; of class ids alone."""
    fill_unsure: bool = True
    """Give unknown pixels a label."""
    num_iterations: int = 5
    """Mean-field updates."""
    num_photographs: int = 8
    """Photographs on the sheet, with their masks; 0: no sheet."""


SETTINGS = ("crf_params", "gt_prob", "zero_unsure", "fill_unsure", "num_iterations")
"""Options that the refined masks depend on."""

RULES = masks.Rules(255)
"""Class ids of masks: all but 255, unknown."""

Masks = np.ndarray
"""Class ids uint8 `[h, w]`, probabilities float `[h, w, c]`, or objects bool `[n, h, w]`."""


@dataclass(frozen=True)
class Job:
    """What is refined of one photograph."""

    name: str
    photograph: Path
    sources: tuple[Path, ...]
    """A mask, probabilities or a JSON; or one mask for each object."""
    targets: tuple[Path, ...]
    """Where each is written; of a COCO JSON the file for all photographs."""
    are_objects: bool = False
    """Whether the sources are masks of one object each."""
    things: tuple[dict, ...] | None = None
    """Annotations of a COCO JSON."""

    def digest(self) -> str:
        """Hash of the photograph and of what is refined."""
        paths = (self.photograph, *(self.sources if self.things is None else ()))
        content = (images.read_bytes(path) for path in paths)
        return hashlib.sha256(b"".join((*content, json.dumps(self.things).encode()))).hexdigest()

    def is_done(self, record: Mapping[str, Any] | None) -> bool:
        """Whether it is refined, as its record says, and nothing has changed since."""
        there = self.things is not None or all(path.exists() for path in self.targets)
        return record is not None and there and record["input"] == self.digest()


def main(options: Options) -> None:
    output = options.output or options.masks.with_stem(options.masks.stem + "_refined")
    report = output.with_name(output.stem + "_report")
    jobs, left_out = find_jobs(options.images, options.masks, output)
    for sentence in left_out:
        print(f"note: {listing.printable(sentence)}")
    begin(report, options)
    before = read_changes(report)
    left = [job for job in jobs if not job.is_done(before.get(job.name))]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} masks are refined already")
    failures = []
    with (report / "changes.jsonl").open("a") as changes:
        results = refine_all(options, left)
        for job, result in cli.progress(results, len(left), what="refined", unit="masks"):
            if isinstance(result, UserError):
                failures.append(str(result))
            else:
                print(json.dumps({"mask": job.name, **result}), file=changes, flush=True)
    after = read_changes(report)
    if options.masks.is_file():
        write_coco(options.masks, output, jobs, after)
    if options.num_photographs:
        draw_sheet(report, jobs, after, options.num_photographs)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} masks refined: {output}; report: {report}")
    if failures:
        raise UserError(
            f"{len(failures)} masks could not be refined, the first because {failures[0]}; "
            "call the script again for them"
        )


def find_jobs(photographs: Path, given: Path, output: Path) -> tuple[list[Job], list[str]]:
    """What there is to refine; and sentences that count and name what is not used."""
    for path, is_there in ((photographs, photographs.is_dir()), (given, given.exists())):
        if not is_there:
            raise UserError(f"expected a folder of photographs, and masks; {path} is not there")
    if given.is_file():
        content, by_name = coco.load(given), {photographs: coco.photographs_below(photographs)}
        jobs = []
        for number, things in content.things.items():
            named = content.images[number].file_name
            name, file = coco.find_photograph(named, by_name)
            jobs.append(Job(name, file, (given,), (output,), things=tuple(things)))
        return jobs, [*coco.describe_use(photographs, given)]
    index = folders.index_photographs(photographs)
    found: dict[str, list[tuple[Path, bool]]] = {}
    unused, lonely = [], []
    for path in sorted(listing.walk(given)):
        name, suffix = folders.name_of(path, given), path.suffix.lower()
        stems = [name.removesuffix(end) for end in folders.MASK_ENDINGS if name.endswith(end)]
        stems.append(name.rpartition("/")[0])  # of a folder of objects
        photograph = next((stem for stem in stems if stem in index), None)
        if suffix not in (*folders.MASK_SUFFIXES, *images.ARRAYS, ".json"):
            unused.append(path)
        elif photograph is None:
            (unused if suffix == ".json" else lonely).append(path)
        else:
            found.setdefault(photograph, []).append((path, photograph == stems[-1]))
    if lonely:
        raise UserError(
            f"{photographs} has no photograph for {len(lonely)} masks, such as {lonely[0]}; move "
            "them elsewhere"
        )
    if not found:
        raise UserError(f"{given} holds no masks (.png, ...), probabilities (.npy) or objects")
    jobs = []
    for name, of_name in sorted(found.items()):
        paths, are_objects = zip(*of_name, strict=True)
        if len(paths) > 1 and not all(are_objects):
            raise UserError(f"{paths[0]} and {paths[1]} may be the mask of {name}; move one away")
        suffix = ".json" if paths[0].suffix.lower() == ".json" else ".png"
        targets = tuple(output / path.relative_to(given).with_suffix(suffix) for path in paths)
        jobs.append(Job(name, index[name], paths, targets, all(are_objects)))
    told = [listing.describe_unused(given, unused)] if unused else []
    without = sorted(index.keys() - found.keys())
    told += [f"{len(without)} photographs have no mask, such as {without[0]}"] if without else []
    return jobs, told


def begin(report: Path, options: Options) -> None:
    """Writes the settings, or refuses to mix masks that were refined with others."""
    if options.overwrite:
        shutil.rmtree(report, ignore_errors=True)
    path, settings = report / "settings.json", {name: getattr(options, name) for name in SETTINGS}
    before = json.loads(path.read_text()) if path.exists() else settings
    for name, value in settings.items():
        if before.get(name) != value:
            raise UserError(
                f"{report} belongs to masks refined with {name} {before.get(name)}, and {value} "
                "was asked for: choose another --output, or give --overwrite to refine all masks "
                "again"
            )
    report.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def read_changes(report: Path) -> dict[str, dict]:
    """The last record of each mask: hash of its input, share of changed pixels, annotations."""
    return {record["mask"]: record for record in workdir.read_lines(report / "changes.jsonl")}


def refine_all(
    options: Options, jobs: Sequence[Job]
) -> Iterator[tuple[Job, dict[str, Any] | UserError]]:
    """Jobs with their records: a mask at a time on each GPU, a few at once on CPUs."""
    host = refinement.host_of_tpu()
    devices = jax.local_devices() if host is None else [host]
    devices = devices * (1 if devices[0].platform != "cpu" else min(4, os.cpu_count() or 1))
    free = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def refine_next(job: Job) -> tuple[Job, dict[str, Any] | UserError]:
        device = free.get()
        try:
            with jax.default_device(device):
                return job, refine_one(options, job)
        except UserError as error:
            return job, error
        finally:
            free.put(device)

    yield from map(refine_next, jobs[:1])  # the first compiles for the others
    yield from evaluation.in_threads(refine_next, jobs[1:], len(devices))


def refine_one(options: Options, job: Job) -> dict[str, Any]:
    """Refines and writes the masks of a photograph; its record."""
    digest, image, name = job.digest(), images.read(job.photograph), options.crf_params
    before, iterations = read(job, image.shape[:2]), {"num_iterations": options.num_iterations}
    given = {"scribbles": crf.SCRIBBLE_PARAMS, None: None}
    params = given[name] if name in given else crf.read_params(name)
    labels_of = partial(
        crf.refine_labels,
        image,
        params=params or crf.LABEL_PARAMS,
        gt_prob=options.gt_prob,
        fill_unsure=options.fill_unsure,
        **iterations,
    )
    if before.dtype == bool:
        after = np.stack([labels_of(one.astype(np.uint8)) for one in before]).astype(bool)
    elif before.ndim == 3:
        probs = crf.refine(image, before, params or crf.RESNET101, **iterations)
        after = np.asarray(probs).argmax(-1).astype(np.uint8)
    else:
        after = labels_of(before, zero_unsure=options.zero_unsure)
    record = {"input": digest, "changed": float((show(before) != show(after)).mean())}
    return {**record, **write(job, before, after)}


def read(job: Job, size: tuple[int, int]) -> Masks:
    """What there is to refine of a photograph of so many rows and columns."""
    path = job.sources[0]
    if job.things is not None or path.suffix.lower() == ".json":
        things = job.things or things_of(path, json.loads(images.read_bytes(path)))
        found = np.stack([coco.draw(path, thing, *size) for thing in things])
    elif job.are_objects:
        # Of each by itself: ours are white at 255, others perhaps at 1.
        found = np.stack([masks.read(path, masks.Rules(255)) > 0 for path in job.sources])
    elif path.suffix.lower() in images.ARRAYS:
        values = images.load_array(path, images.read_bytes(path))
        found = values if values.dtype.kind == "f" else masks.read(path, RULES)
    else:
        found = masks.read(path, RULES)
    shape = found.shape[1:] if found.dtype == bool else found.shape[:2]
    if shape != size:
        told = f"{shape[1]} x {shape[0]} and its photograph {size[1]} x {size[0]}"
        raise UserError(f"{path} is {told}; both must be of one size")
    return found


def things_of(path: Path, content: Any) -> list[dict]:
    """The annotations of one photograph: a list, or what `annotations` has in an object."""
    things = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(things, list) or not all(isinstance(thing, dict) for thing in things):
        raise UserError(f"{path} lists no annotations with a `segmentation` each.")
    return things


def write(job: Job, before: Masks, after: Masks) -> dict[str, Any]:
    """Writes the refined masks of a photograph; what stays in its record for a COCO JSON."""
    if job.things is not None:
        return {"annotations": list(map(coco.with_mask, job.things, after))}
    for path in job.targets:
        path.parent.mkdir(parents=True, exist_ok=True)
    if job.targets[0].suffix == ".json":
        content = json.loads(images.read_bytes(job.sources[0]))
        for thing, inside in zip(things_of(job.sources[0], content), after, strict=True):
            thing.update(coco.with_mask(thing, inside))
        write_json(job.targets[0], content)
        return {}
    maps = after * np.uint8(255) if job.are_objects else [after]
    for path, labels in zip(job.targets, maps, strict=True):
        picture = PILImage.fromarray(labels)
        if before.dtype == np.uint8 and (palette := masks.palette_of(job.sources[0], before)):
            picture.putpalette(palette)
        with storage.written_whole(path) as partly:
            picture.save(partly, format="PNG")
    return {}


def write_json(path: Path, content: Any) -> None:
    with storage.written_whole(path) as partly:
        partly.write_text(json.dumps(content))


def write_coco(path: Path, output: Path, jobs: Sequence[Job], records: Mapping[str, dict]) -> None:
    """The JSON with the refined annotations in place of the others."""
    content = json.loads(path.read_bytes())
    refined = {
        number: iter(records[job.name]["annotations"])
        for number, job in zip(coco.load(path).things, jobs, strict=True)
        if job.name in records
    }
    content["annotations"] = [
        next(refined.get(coco.as_id(thing["image_id"]), iter([thing])))
        for thing in content["annotations"]
    ]
    write_json(output, content)


def show(found: Masks) -> np.ndarray:
    """Masks as one map: class ids; of objects their numbers from 1, small ones on large ones."""
    if found.dtype != bool:
        return found if found.ndim == 2 else found.argmax(-1).astype(np.uint8)
    labels = np.zeros(found.shape[1:], np.uint8)
    for number in sorted(range(len(found)), key=lambda i: -found[i].sum()):
        labels[found[number]] = 1 + number % 254
    return labels


def draw_sheet(report: Path, jobs: Sequence[Job], records: Mapping[str, dict], number: int) -> None:
    """The masks that changed most, before and after, beside their photographs."""
    done = [job for job in jobs if job.name in records]
    rows, captions = [], []
    for job in sorted(done, key=lambda job: -records[job.name]["changed"])[:number]:
        image, record = images.read(job.photograph), records[job.name]
        things = tuple(record["annotations"]) if "annotations" in record else None
        refined = replace(job, sources=job.targets, things=things)
        rows.append([image, *(show(read(j, image.shape[:2])) for j in (job, refined))])
        captions.append(f"{job.name}: {record['changed']:.1%} of the pixels changed")
    if rows:
        titles = ("photograph", "before", "after")
        sheet = visualization.sheet(rows, [""] * 255, titles=titles, captions=captions)
        PILImage.fromarray(sheet).save(report / "sheet.png")


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
