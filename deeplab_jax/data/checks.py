"""What is wrong with a data set, found before training."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL import Image

from deeplab_jax.data import files, folders, layouts
from deeplab_jax.types import IGNORE_LABEL, UserError

LABEL_VALUES = 256


@dataclass(frozen=True)
class Finding:
    """Something to put right, or to know of, in one sentence that names the file."""

    path: Path
    sentence: str
    stops_training: bool


@dataclass(frozen=True)
class SplitReport:
    """What was seen in the photographs of one split."""

    name: str
    listed: int
    sizes: Counter
    """Photographs of each (height, width)."""
    pixels: Int64[np.ndarray, "256"]
    """Pixels of each label."""
    photographs: dict[str, Path]
    """Photographs by a hash of what the file holds."""
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Report:
    """What was seen in a data set; `findings` has those of the splits and those between them."""

    folder: folders.Folder
    splits: tuple[SplitReport, ...]
    findings: tuple[Finding, ...]


def check_dataset(
    root: Path,
    *,
    splits: Sequence[str] = (),
    sample: int | None = None,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Report:
    """Read the photographs and masks of some splits, or of all where none is named.

    `sample` limits the number read from each split; which they are depends on `seed`.
    """
    folder = folders.open_folder(root)
    names = splits or list(layouts.splits_of(folder.path, folder.layout))
    reports, findings = [], []
    for name in names:
        pairs = layouts.read_split(folder.path, folder.layout, name)
        findings += find_repeated_names(pairs, name)
        report = check_split(folder, name, choose(pairs, sample, seed), progress=progress)
        findings += report.findings
        reports.append(report)
    findings += find_shared_photographs(reports)
    if sample is None:
        findings += find_absent_classes(folder, reports)
    return Report(folder, tuple(reports), tuple(findings))


def choose(
    pairs: Sequence[layouts.Pair], sample: int | None, seed: int
) -> Sequence[layouts.Pair]:
    """So many of the pairs, in the order of the list."""
    if sample is None or sample >= len(pairs):
        return pairs
    chosen = np.random.default_rng(seed).choice(len(pairs), sample, replace=False)
    return [pairs[i] for i in sorted(chosen)]


def check_split(
    folder: folders.Folder,
    name: str,
    pairs: Sequence[layouts.Pair],
    *,
    progress: Callable[[Iterable], Iterable],
) -> SplitReport:
    sizes, pixels = Counter(), np.zeros(LABEL_VALUES, np.int64)
    photographs, findings = {}, []
    for pair in progress(pairs):
        try:
            found, digest = look_at_photograph(pair.photograph)
            findings += found
            size = files.read_photograph(pair.photograph)[1]
            sizes[size] += 1
            if digest in photographs:
                findings.append(same_photograph(pair.photograph, photographs[digest]))
            photographs[digest] = pair.photograph
        except UserError as error:
            findings.append(Finding(pair.photograph, str(error), True))
            size = None
        findings += look_at_mask(folder, pair, size, pixels)
    return SplitReport(name, len(pairs), sizes, pixels, photographs, tuple(findings))
