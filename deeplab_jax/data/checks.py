"""What is wrong with a data set, found before training."""

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from deeplab_jax.data import builders, folders, images, listing, masks
from deeplab_jax.data.folders import Folder, Pair
from deeplab_jax.types import IGNORE_LABEL, BadData, UserError

UNUSUAL_MODES = {"L": "grey", "CMYK": "in CMYK", "P": "of palette colours", "RGBA": "transparent"}


class Finding(NamedTuple):
    """A sentence that names a file; a fault stops training, anything else is good to know."""

    sentence: str
    is_fault: bool = False
    is_single_class: bool = False
    """Of a split, which shows one class only or none."""


@dataclass
class PairReport:
    """What one photograph and its mask hold, where they can be read."""

    pair: Pair
    size: tuple[int, int] | None = None
    """Height and width of the photograph in pixels."""
    digest: str | None = None
    """Hash of the photograph's file."""
    pixels: Int64[np.ndarray, "256"] = field(default_factory=lambda: np.zeros(256, np.int64))
    """Pixels of each label."""
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class SplitReport:
    """The pairs of a split that were read, and how many its list has."""

    name: str
    listed: int
    pairs: tuple[PairReport, ...]

    @property
    def pixels(self) -> Int64[np.ndarray, "256"]:
        """Pixels of each label in what was read."""
        return sum((report.pixels for report in self.pairs), np.zeros(256, np.int64))


@dataclass(frozen=True)
class Report:
    folder: Folder
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]


def check_dataset(
    folder: Folder,
    splits: Sequence[str] = (),
    *,
    sample: int | None = None,
    seed: int = 0,
    allow_one_class: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Report:
    """Read the photographs and masks of some splits, or of all where none is named; of each
    `sample` that are drawn by `seed`, but as many masks as it takes to see two classes: a split of
    one class is a fault without `allow_one_class`."""
    reports, findings, single = [], [], []
    rules = masks.rules_of(folder)
    if not splits:  # those that training takes by default
        absent = [split for split in ("train", "val") if split not in folder.splits]
        findings += [Finding(folders.describe_absent(folder, split)) for split in absent]
    for name in splits or tuple(folder.splits):
        try:
            pairs = folders.read_split(folder, name)
        except UserError as fault:
            if name not in folder.splits:
                raise
            findings.append(Finding(str(fault), True))
            continue
        findings += [Finding(told, True) for told in folders.describe_repeated(pairs, name)]
        chosen = choose(pairs, sample, seed)
        read = tuple(read_pair(pair, folder, rules) for pair in progress(chosen))
        findings += [finding for report in read for finding in report.findings]
        reports.append(SplitReport(name, len(pairs), read))
        if not allow_one_class:
            known = {pair.name for pair in chosen}
            rest = (pair for pair in pairs if pair.name not in known)
            single += find_single_class(folder, reports[-1], rest, rules)
    findings += find_equal_photographs(reports)
    findings += find_absent_classes(folder, reports) if sample is None else []
    told = folders.left_out(folder, [report.name for report in reports])
    findings += [Finding(f"{sentence}.") for sentence in told]
    return Report(folder, tuple(reports), (*findings, *single))


def choose(pairs: Sequence[Any], sample: int | None, seed: int) -> Sequence[Any]:
    """`sample` of the pairs, drawn by `seed`, in the order of the list; all where it is None."""
    if sample is None or sample >= len(pairs):
        return pairs
    chosen = np.random.default_rng(seed).choice(len(pairs), sample, replace=False)
    return [pairs[i] for i in sorted(chosen)]


def read_pair(pair: Pair, folder: Folder, rules: masks.Rules) -> PairReport:
    """Read both files to the end; every fault becomes a finding."""
    report, channels = PairReport(pair), folder.place.channels
    try:
        data = images.read_bytes(pair.photograph)
        report.digest = hashlib.sha256(data).hexdigest()
        options = {"channels": channels, "value_range": folder.place.range}
        _, report.size = images.to_record(pair.photograph, **options)
        if channels is None:
            report.findings += map(Finding, describe_unusual(pair.photograph, data))
    except UserError as fault:
        report.findings.append(Finding(str(fault), True))
    try:
        if pair.mask is not None:
            labels = masks.read(pair.mask, rules)
            report.pixels = np.bincount(labels.ravel(), minlength=256)
            if not report.pixels[:IGNORE_LABEL].any():
                told = f"{pair.mask_path} is void everywhere; nothing is learnt from it."
                report.findings.append(Finding(told))
            if report.size is not None:
                masks.check_sizes_agree(pair, report.size, labels)
    except UserError as fault:
        report.findings.append(Finding(str(fault), True))
    return report


def describe_unusual(path: Path, data: bytes) -> list[str]:
    """What training accepts in a photograph and people may not expect."""
    picture = Image.open(io.BytesIO(data))
    told = []
    if picture.mode != "RGB":
        kind = UNUSUAL_MODES.get(picture.mode, f"of mode {picture.mode}")
        told.append(f"{path} is {kind}; it is read as RGB.")
    if images.orientation(picture) != 1:
        told.append(f"{path} is turned upright by its EXIF orientation; check its mask, too.")
    if (frames := images.count_frames(picture)) > 1:
        told.append(f"{path} has {frames} frames, of which the first is read.")
    return told


def find_equal_photographs(reports: Sequence[SplitReport]) -> list[Finding]:
    """Equal photographs under two names, or in two splits."""
    seen: dict[str, str] = {}
    findings = []
    for split in reports:
        for report in split.pairs:
            this = f"{report.pair.photograph} ({split.name})"
            first = seen.setdefault(report.digest, this) if report.digest else this
            if first != this:
                findings.append(Finding(f"{this} is the same photograph as {first}."))
    return findings


def find_absent_classes(folder: Folder, reports: Sequence[SplitReport]) -> list[Finding]:
    """Classes that no mask of a split holds, of splits that have masks."""
    findings = []
    for split in reports:
        names = np.array(folder.class_names)[split.pixels[: len(folder.class_names)] == 0]
        if len(names) and any(report.pair.mask for report in split.pairs):
            told = f"{folder.path}: no mask of the split {split.name} shows {', '.join(names)}."
            findings.append(Finding(told))
    return findings


def find_single_class(
    folder: Folder, report: SplitReport, rest: Iterable[Pair], rules: masks.Rules
) -> list[Finding]:
    """A fault where the masks of a split, `rest` of them unread, show one class or none."""
    pixels = report.pixels
    for pair in rest:
        if np.count_nonzero(pixels[:IGNORE_LABEL]) > 1:
            break
        with contextlib.suppress(UserError):
            if pair.mask is not None:
                pixels = pixels + np.bincount(masks.read(pair.mask, rules).ravel(), minlength=256)
    present = np.flatnonzero(pixels[:IGNORE_LABEL]).tolist()
    if len(present) > 1 or not pixels.any():
        return []
    source = f"; look at {folder.mapping.path}" if folder.mapping else ""
    if (given := folder.given_masks) and given.split == report.name:
        source = f"; the masks come from {given.folder}"
    told = f"{folder.path}: every mask of the split {report.name} is void everywhere{source}."
    for label in present:
        told = (
            f"{folder.path}: all pixels that count in the split {report.name} have the class "
            f"{label} ({folder.class_names[label]}): knowing it alone scores 1.0{source}."
        )
        if pixels[IGNORE_LABEL] and not source:
            told += (
                f" If {IGNORE_LABEL}, which is void, is a class, name two in labels.txt and write "
                f"two lines into mapping.txt beside it: `{label} 0` and `{IGNORE_LABEL} 1`."
            )
    return [Finding(told, True, True)]


def refuse_faults(report: Report, bad_data: BadData) -> None:
    """Raises a UserError with the first fault and their number, where there is one; where bad data
    is skipped, only a split of one class is such a fault."""
    faults = [f for f in report.findings if f.is_fault]
    builders.refuse([f.sentence for f in faults if bad_data == "raise" or f.is_single_class])


def describe_notes(report: Report, most: int = 10) -> list[str]:
    """A line for each finding that is no fault, at most so many and one that counts the rest."""
    notes = [listing.printable(f"note   {f.sentence}") for f in report.findings if not f.is_fault]
    rest = len(notes) - most
    return notes[:most] + ([f"note   and {rest} more: see check_data.py"] if rest > 0 else [])


def describe(report: Report) -> str:
    """Counts, sizes, shares of classes and void, and all findings, as lines of text."""
    lines = list(map(describe_split, report.splits)) + describe_classes(report)
    faults = sum(finding.is_fault for finding in report.findings)
    others = len(report.findings) - faults
    lines += [f"{'fault' if f.is_fault else 'note '}  {f.sentence}" for f in report.findings]
    lines.append(f"{faults} fault{'s' * (faults != 1)}, {others} note{'s' * (others != 1)}")
    return listing.printable("\n".join(lines))


def describe_split(split: SplitReport) -> str:
    """How many photographs a split has, and their commonest sizes."""
    sizes = Counter(report.size for report in split.pairs if report.size is not None)
    common = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3))
    others = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    read = "" if len(split.pairs) == split.listed else f", {len(split.pairs)} of them read"
    return f"{split.name}: {split.listed} photographs{read}; sizes {common}{others}"


def describe_classes(report: Report) -> list[str]:
    """A table of the share of pixels each class has in each split, and of void."""
    width = max(len(name) for name in (*report.folder.class_names, "void"))
    columns = [split.pixels / max(split.pixels.sum(), 1) for split in report.splits]
    lines = [f"{'class':{width}}" + "".join(f"{split.name:>12}" for split in report.splits)]
    for label, name in (*enumerate(report.folder.class_names), (IGNORE_LABEL, "void")):
        lines.append(f"{name:{width}}" + "".join(f"{100 * c[label]:11.2f}%" for c in columns))
    return lines
