"""Masks that take the place of a split's own, as weak supervision makes them.

They are pictures of class ids with 255 where nothing counts, as predict.py writes them, under the
names of the photographs; a mapping.txt of the data set does not apply to them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import files, folders
from deeplab_jax.data.folders import Folder, Pair
from deeplab_jax.types import UserError


@dataclass(frozen=True)
class GivenMask:
    """A mask of class ids, whatever the other masks of the data set hold."""

    path: Path
    num_classes: int

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        return files.read_mask(self.path, num_classes=self.num_classes)


def with_masks(folder: Folder, split: str, masks: Path) -> Folder:
    """The folder with the masks of a split taken from the folder `masks`.

    Raises:
      UserError: there is no such folder.
    """
    if not masks.is_dir():
        raise UserError(f"the masks to train on should lie in {masks}, which is not a folder")
    splits = {**folder.splits, split: partial(read_given, folder, split, masks)}
    return replace(folder, splits=splits, given_masks=(split, masks))


def read_given(folder: Folder, split: str, masks: Path) -> tuple[Pair, ...]:
    """The photographs of a split, each with its mask in `masks`, which need not be there."""
    index, number = folders.index_masks(masks), len(folder.class_names)
    pairs = []
    for pair in folders.read_split(folder, split):
        names = (pair.name, pair.photograph.stem)
        found = (folders.find_mask(name, index) for name in names)
        path = next(filter(None, found), masks / f"{pair.name}.png")
        pairs.append(replace(pair, mask=GivenMask(path, number)))
    return tuple(pairs)


def truth_and_given(
    folder: Folder, split: str, masks: Path
) -> Iterator[tuple[UInt8[np.ndarray, "h w"] | None, UInt8[np.ndarray, "h w"]]]:
    """(true mask, given mask) of each photograph of a split of `folder`.

    The true one is None where there is none of the same size; pairs whose given mask cannot be read
    are left out.
    """
    true_pairs = folders.read_split(folder, split)
    for pair, other in zip(true_pairs, read_given(folder, split, masks), strict=True):
        given = _read(folder, other)
        if given is None:
            continue
        truth = _read(folder, pair)
        yield (truth if truth is not None and truth.shape == given.shape else None), given


def _read(folder: Folder, pair: Pair) -> UInt8[np.ndarray, "h w"] | None:
    if pair.mask is None:
        return None
    try:
        return files.read_mask(
            pair.mask, num_classes=len(folder.class_names), mapping=folder.mapping
        )
    except UserError:
        return None
