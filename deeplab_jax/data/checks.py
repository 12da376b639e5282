"""What is wrong with a data set, found before training."""

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image

from deeplab_jax.data import builders, folders, images, listing, masks
from deeplab_jax.types import IGNORE_LABEL, UserError

USUAL_MODE = "RGB"
UNUSUAL_MODES = {"L": "grey", "CMYK": "in CMYK", "P": "of palette colours", "RGBA": "transparent"}


@dataclass(frozen=True)
class Finding:
    """One sentence that names a file; a fault stops training, anything else is good to know."""

    path: Path
    sentence: str
    is_fault: bool


@dataclass(frozen=True)
class PairReport:
    """What one photograph and its mask hold; fields are None where a file cannot be read."""

    pair: folders.Pair
    size: tuple[int, int] | None
    """Height and width of the photograph in pixels."""
    digest: str | None
    """Hash of the photograph's file."""
    pixels: Int64[np.ndarray, "256"]
    """Pixels of each label."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class SplitReport:
    """The pairs of a split that were read, and how many its list has."""

    name: str
    listed: int
    pairs: tuple[PairReport, ...]


@dataclass(frozen=True)
class Report:
    """What was seen in a data set."""

    folder: folders.Folder
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]
    single_class: tuple[Finding, ...] = ()
    """The findings that a split shows one class only, or none."""


def check_dataset(
    root: Path,
    *,
    prepared_dir: Path,
    splits: Sequence[str] = (),
    sample: int | None = None,
    seed: int = 0,
    allow_one_class: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
    reading: folders.Reading | None = None,
) -> Report:
    """Read the photographs and masks of some splits, or of all where none is named.

    `sample` limits the number read from each split; which they are depends on `seed`. Where they
    show one class only, further masks are read until there are two, so that a split of one class
    is found whatever the sample; with `allow_one_class` it is no fault. Archives are unpacked below
    `prepared_dir`, as training does.
    """
    folder = builders.open_folder(root, prepared_dir, splits, reading)
    reports, findings, single = [], [], []
    rules = masks.rules_of(folder)
    names = splits or tuple(folder.splits)
    if not splits:
        findings += find_absent_splits(folder)
    for name in names:
        try:
            pairs = folders.read_split(folder, name)
        except UserError as fault:
            if name not in folder.splits:
                raise
            findings.append(Finding(folder.path, str(fault), True))
            continue
        findings += find_repeated_names(pairs, name)
        chosen = choose(pairs, sample, seed)
        pair_reports = tuple(read_pair(pair, folder, rules) for pair in progress(chosen))
        findings += [finding for report in pair_reports for finding in report.findings]
        reports.append(SplitReport(name, len(pairs), pair_reports))
        if not allow_one_class:
            read = {pair.name for pair in chosen}
            rest = (pair for pair in pairs if pair.name not in read)
            single += find_single_class(folder, reports[-1], rest, rules)
    findings += find_equal_photographs(reports)
    if sample is None:
        findings += find_absent_classes(folder, reports)
    told = folders.left_out(folder, [report.name for report in reports])
    findings += [Finding(folder.path, f"{sentence}.", False) for sentence in told]
    findings += single
    return Report(folder, tuple(reports), tuple(findings), tuple(single))


def choose(pairs: Sequence[Any], sample: int | None, seed: int) -> Sequence[Any]:
    """`sample` of the pairs, drawn by `seed`, in the order of the list; all where it is None."""
    if sample is None or sample >= len(pairs):
        return pairs
    chosen = np.random.default_rng(seed).choice(len(pairs), sample, replace=False)
    return [pairs[i] for i in sorted(chosen)]


def read_pair(pair: folders.Pair, folder: folders.Folder, rules: masks.Rules) -> PairReport:
    """Read both files to the end; every fault becomes a finding."""
    findings: list[Finding] = []
    size = digest = None
    pixels = np.zeros(256, np.int64)
    try:
        data = images.read_bytes(pair.photograph)
        digest = hashlib.sha256(data).hexdigest()
        size = images.to_record(
            pair.photograph, value_range=folder.value_range, channels=folder.channels
        )[1]
        if folder.channels is None:
            findings += find_unusual_photograph(pair.photograph, data)
    except UserError as fault:
        findings.append(Finding(pair.photograph, str(fault), True))
    path = pair.mask_path
    if pair.mask is None or path is None:
        return PairReport(pair, size, digest, pixels, tuple(findings))
    try:
        labels = masks.read(pair.mask, rules)
        pixels = np.bincount(labels.ravel(), minlength=256)
        if not pixels[:IGNORE_LABEL].any():
            sentence = f"{path} is void everywhere; nothing is learnt from it."
            findings.append(Finding(path, sentence, False))
        if size is not None:
            masks.check_sizes_agree(pair, size, labels)
    except UserError as fault:
        findings.append(Finding(path, str(fault), True))
    return PairReport(pair, size, digest, pixels, tuple(findings))


def find_unusual_photograph(path: Path, data: bytes) -> list[Finding]:
    """What training accepts in a photograph and people may not expect."""
    picture = Image.open(io.BytesIO(data))
    told = []
    if picture.mode != USUAL_MODE:
        kind = UNUSUAL_MODES.get(picture.mode, f"of mode {picture.mode}")
        told.append(f"{path} is {kind}; it is read as RGB.")
    if images.orientation(picture) != 1:
        told.append(f"{path} is turned upright by its EXIF orientation; check its mask, too.")
    if (frames := images.count_frames(picture)) > 1:
        told.append(f"{path} has {frames} frames, of which the first is read.")
    return [Finding(path, sentence, False) for sentence in told]


def find_repeated_names(pairs: Sequence[folders.Pair], split: str) -> list[Finding]:
    """Names that a split lists more than once."""
    counts = Counter(pair.name for pair in pairs)
    first = {pair.name: pair.photograph for pair in reversed(pairs)}
    return [
        Finding(first[name], f"{first[name]} stands {n} times in the split {split}.", True)
        for name, n in counts.items()
        if n > 1
    ]


def find_equal_photographs(reports: Sequence[SplitReport]) -> list[Finding]:
    """Equal photographs under two names, or in two splits."""
    seen: dict[str | None, tuple[str, Path]] = {}
    findings = []
    for report in reports:
        for look in report.pairs:
            entry = (report.name, look.pair.photograph)
            split, path = seen.setdefault(look.digest, entry)
            if look.digest is not None and (split, path) != entry:
                sentence = f"{entry[1]} ({entry[0]}) is the same photograph as {path} ({split})."
                findings.append(Finding(entry[1], sentence, False))
    return findings


def find_absent_classes(folder: folders.Folder, reports: Sequence[SplitReport]) -> list[Finding]:
    """Classes that no mask of a split holds."""
    findings = []
    for report in reports:
        pixels = count_pixels(report)
        if not any(look.pair.mask for look in report.pairs):
            continue  # a test split without truth
        absent = [name for i, name in enumerate(folder.class_names) if not pixels[i]]
        if absent:
            path = folder.path / "labels.txt"
            path = path if path.is_file() else folder.path
            sentence = f"{path} names classes that {report.name} never shows: {', '.join(absent)}."
            findings.append(Finding(path, sentence, False))
    return findings


def find_absent_splits(folder: folders.Folder) -> list[Finding]:
    """Whether `train` or `val`, the splits that training takes by default, are missing."""
    part = ", or with --data.val-fraction 0.1" if len(folder.splits) == 1 else ""
    return [
        Finding(
            folder.path,
            f"{folder.path} has no split {split}; make one, or train with "
            f"--data.{split}-split{part}.",
            False,
        )
        for split in ("train", "val")
        if split not in folder.splits
    ]


def find_single_class(
    folder: folders.Folder, report: SplitReport, rest: Iterable[folders.Pair], rules: masks.Rules
) -> list[Finding]:
    """A fault where the masks of a split show one class or none; `rest` are those not read yet.

    None where no mask can be read.
    """
    pixels = count_pixels(report)
    for pair in rest:
        if np.count_nonzero(pixels[:IGNORE_LABEL]) > 1:
            break
        with contextlib.suppress(UserError):
            if pair.mask is not None:
                pixels = pixels + np.bincount(masks.read(pair.mask, rules).ravel(), minlength=256)
    present = np.flatnonzero(pixels[:IGNORE_LABEL]).tolist()
    if len(present) > 1 or not pixels.any():
        return []
    sentence = describe_single_class(folder, report.name, present, has_void=bool(pixels[-1]))
    return [Finding(folder.path, sentence, True)]


def describe_single_class(
    folder: folders.Folder, split: str, present: Sequence[int], *, has_void: bool
) -> str:
    """What is wrong and what to write, where at most one class has pixels."""
    source = f"; look at {folder.mapping.path}" if folder.mapping is not None else ""
    if folder.given_masks is not None and folder.given_masks[0] == split:
        source = f"; the masks come from {folder.given_masks[1]}"
    if not present:
        return f"{folder.path}: every mask of the split {split} is void everywhere{source}."
    label = present[0]
    told = (
        f"{folder.path}: all pixels that count in the split {split} have the class {label} "
        f"({folder.class_names[label]}), so that a network that knows no other scores 1.0{source}."
    )
    if has_void and not source:
        told += (
            f" If {IGNORE_LABEL}, which counts as void, is a class, name two in labels.txt and "
            f"write these two lines into mapping.txt beside it: `{label} 0` and `{IGNORE_LABEL} 1`."
        )
    return told


def count_pixels(report: SplitReport) -> Int64[np.ndarray, "256"]:
    """Pixels of each label in what was read of a split."""
    return sum((look.pixels for look in report.pairs), np.zeros(256, np.int64))


def refuse_faults(findings: Sequence[Finding]) -> None:
    """Raises a UserError with the first fault and their number, where there is one."""
    faults = [finding.sentence for finding in findings if finding.is_fault]
    if faults:
        raise UserError(builders.join_faults(faults))


def describe_notes(report: Report, most: int = 10) -> list[str]:
    """A line for each finding that is no fault, at most so many and one that counts the rest."""
    notes = [listing.printable(f"note   {f.sentence}") for f in report.findings if not f.is_fault]
    rest = len(notes) - most
    return notes[:most] + ([f"note   and {rest} more: see check_data.py"] if rest > 0 else [])


def describe(report: Report) -> str:
    """Counts, sizes, shares of classes and void, and all findings, as lines of text."""
    lines = [line for split in report.splits for line in describe_split(split)]
    lines += describe_classes(report)
    faults = sum(finding.is_fault for finding in report.findings)
    others = len(report.findings) - faults
    lines += [f"{'fault' if f.is_fault else 'note '}  {f.sentence}" for f in report.findings]
    lines.append(f"{faults} fault{'s' * (faults != 1)}, {others} note{'s' * (others != 1)}")
    return listing.printable("\n".join(lines))


def describe_split(report: SplitReport) -> list[str]:
    """Lines to print about one split."""
    sizes = Counter(look.size for look in report.pairs if look.size is not None)
    common = ", ".join(f"{w}x{h} ({n})" for (h, w), n in sizes.most_common(3))
    others = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    read = "" if len(report.pairs) == report.listed else f", {len(report.pairs)} of them read"
    return [f"{report.name}: {report.listed} photographs{read}; sizes {common}{others}"]


def describe_classes(report: Report) -> list[str]:
    """A table of the share of pixels each class has in each split, and of void."""
    width = max(len(name) for name in (*report.folder.class_names, "void"))
    columns = [count_pixels(split) for split in report.splits]
    lines = [f"{'class':{width}}" + "".join(f"{split.name:>12}" for split in report.splits)]
    rows = [*enumerate(report.folder.class_names), (IGNORE_LABEL, "void")]
    for label, name in rows:
        shares = [column[label] / max(column.sum(), 1) for column in columns]
        lines.append(f"{name:{width}}" + "".join(f"{100 * share:11.2f}%" for share in shares))
    return lines
