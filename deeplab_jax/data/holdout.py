"""Photographs that are held out for validation where a data set has one split only."""

import hashlib
import math
import re
from dataclasses import replace
from functools import partial

from deeplab_jax.data.folders import Folder, Pair, read_split
from deeplab_jax.types import UserError


def hold_out(folder: Folder, fraction: float, *, groups: str | None = None) -> Folder:
    """The folder with its only split divided into `train` and `val`.

    The side of a photograph depends on its name alone, so that it does not change when others are
    added or removed. With `groups`, a regular expression, it depends on what that matches in the
    name (on its first group, where it has one): photographs of a sequence stay together.

    Raises:
      UserError: the folder has several splits, the fraction is not between 0 and 1, or the
        expression is none.
    """
    if len(folder.splits) != 1:
        raise UserError(
            f"{folder.path} has the splits {', '.join(folder.splits)}; val_fraction {fraction} is "
            "for data sets of one split: leave it out."
        )
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction {fraction} must be between 0 and 1, such as 0.1.")
    try:
        pattern = re.compile(groups or "(?s).*")
    except re.error as error:
        raise UserError(f"val_groups {groups!r} is no regular expression ({error}).") from None
    (split,) = folder.splits
    read = partial(read_side, folder, split, fraction, pattern)
    return replace(
        folder,
        splits={"train": partial(read, val=False), "val": partial(read, val=True)},
        notes={"train": folder.notes[split]} if split in folder.notes else {},
    )


def read_side(
    folder: Folder, split: str, fraction: float, pattern: re.Pattern, *, val: bool
) -> tuple[Pair, ...]:
    """The photographs of a split that are trained on, or those held out, in the split's order."""
    pairs = read_split(folder, split)
    positions = [position_of(pair.name, pattern) for pair in pairs]
    least, most = min(positions), max(positions)
    for side, is_empty, limit in (
        ("val", least >= fraction, math.floor(least * 100 + 1) / 100),
        ("train", most < fraction, math.floor(most * 100) / 100),
    ):
        if is_empty:
            raise UserError(
                f"none of the {len(pairs)} photographs of {folder.path} falls into {side} with "
                f"val_fraction {fraction}; try {limit}."
            )
    together = zip(pairs, positions, strict=True)
    return tuple(pair for pair, position in together if (position < fraction) == val)


def position_of(name: str, pattern: re.Pattern) -> float:
    """A number in [0, 1), spread evenly over what the pattern matches in names.

    >>> round(position_of("IMG_0001", re.compile(".*")), 4)
    0.9087
    """
    match = pattern.search(name)
    group = match and match[min(pattern.groups, 1)]
    if group is None:
        raise UserError(f"val_groups {pattern.pattern!r} matches nothing in the name {name!r}.")
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6]) / 2**48
