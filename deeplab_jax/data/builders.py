"""Photographs and masks as TFDS builders that need no TensorFlow, and as sources to read from.

Every data set has one format: `image`, what `images.to_record` gives; `labels`, class ids as a grey
PNG with 255 for ignored pixels; `name`, the file name without suffix; `height` and `width` in
pixels. Records keep the order of the list.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from deeplab_jax.data import folders, images, layouts, listing, masks, prepare, scenes
from deeplab_jax.data.folders import Folder, Place
from deeplab_jax.types import IGNORE_LABEL, BadData, UserError

UNDECODED = {"image": tfds.decode.SkipDecoding(), "labels": tfds.decode.SkipDecoding()}
"""Pictures come as bytes: TFDS would decode a palette PNG to colours where OpenCV is installed."""


@dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
    """One split of a folder; its name is the config's name."""

    pairs: tuple[folders.Pair, ...] = field(default=(), repr=False)
    rules: masks.Rules = field(default_factory=lambda: masks.Rules(0), repr=False)
    place: Place = Place(None)
    bad_data: BadData = "raise"
    content: Any = field(default_factory=hashlib.sha256, repr=False)
    """Hash of the photographs' files, of what they are read as, and of the class ids."""


class LocalInfo(tfds.core.DatasetInfo):
    """TFDS's description of a split, made without its bucket of published data sets."""

    def initialize_from_bucket(self) -> None:
        """TFDS's own method would leave an empty temporary folder."""


class VocFolder(tfds.core.GeneratorBasedBuilder):
    """One split of a folder in VOC layout, or of another data set that layouts.py finds."""

    VERSION = tfds.core.Version("1.0.0")
    builder_config: FolderConfig  # type of the parent's attribute, narrowed
    url_infos = None  # nothing is downloaded, so there are no checksums to look for

    def _info(self) -> tfds.core.DatasetInfo:
        is_rgb = self.builder_config.place.channels is None
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image() if is_rgb else tfds.features.Text(),
                "labels": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "name": tfds.features.Text(),
                "height": np.int32,
                "width": np.int32,
            }
        )
        return LocalInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {self.builder_config.name: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """All records, or a UserError that names the first fault and counts the others; where bad
        data is skipped, each fault is told on stderr."""
        faults = []
        config = self.builder_config
        shown = tqdm(config.pairs, desc=f"prepare {config.name}", disable=None)
        for index, pair in enumerate(shown):
            try:
                yield index, make_record(pair, config)
            except UserError as fault:
                faults.append(str(fault))
        if config.bad_data == "raise" or len(faults) == len(config.pairs):
            refuse(faults)
        for sentence in faults:
            print(f"skipped: {sentence}", file=sys.stderr)


def make_record(pair: folders.Pair, config: FolderConfig) -> dict[str, Any]:
    """A photograph and its mask, checked, in the form that TFDS encodes."""
    place = config.place
    encoded, size = images.to_record(
        pair.photograph, value_range=place.range, channels=place.channels
    )
    labels = np.full(size, IGNORE_LABEL, np.uint8)
    if pair.mask is not None:
        labels = masks.read(pair.mask, config.rules)
        masks.check_sizes_agree(pair, size, labels)
    name = listing.printable(pair.name)
    for part in (repr((name, *size)).encode(), pair.photograph.read_bytes(), labels.tobytes()):
        config.content.update(part)
    named = {"name": name, "height": size[0], "width": size[1]}
    return {"image": encoded, "labels": masks.encode(labels), **named}


def refuse(faults: Sequence[str]) -> None:
    """Raises a UserError with the first of some faults and their number, where there is one."""
    others = f" (faults found: {len(faults)}, experiments/check_data.py lists them)."
    if faults:
        raise UserError(faults[0].rstrip(".") + others if len(faults) > 1 else faults[0])


@dataclass(frozen=True)
class Source:
    """Random access to the records of one prepared split; opened where it is first read."""

    path: Path
    split: str

    @cached_property
    def records(self) -> Sequence:
        builder: Any = tfds.builder_from_directory(self.path)
        return builder.as_data_source(split=self.split, decoders=UNDECODED)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image` uint8 `[h, w, channels]`, `labels` uint8 `[h, w]`, `name`."""
        try:
            record = self.records[index]
        except RuntimeError as error:
            raise UserError(
                f"{self.path} is damaged ({str(error).splitlines()[0]}); remove it, and the same "
                "command prepares it again"
            ) from None
        return {
            "image": images.decode_record(record["image"]),
            "labels": images.decode_record(record["labels"]),
            "name": record["name"].decode(),
        }

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:  # worker processes open it themselves
        return Source, (self.path, self.split)


@dataclass(frozen=True)
class Dataset:
    """Prepared splits of one data set, all with the same classes."""

    class_names: tuple[str, ...]
    splits: Mapping[str, Source]
    identity: str
    """Hash of the photographs' files, their names, the class ids of their masks and the classes;
    the same wherever the data set lies."""
    class_colors: tuple[tuple[int, int, int], ...] | None = None
    """RGB colours of the classes in pictures, where the data set names them."""


def both(one: Dataset, other: Dataset) -> Dataset:
    """The splits of two data sets of the same classes."""
    identity = identity_of({"one": one.identity, "other": other.identity})
    splits = {**one.splits, **other.splits}
    return Dataset(one.class_names, splits, identity, one.class_colors)


def identity_of(parts: Mapping[str, str]) -> str:
    """One hash of several, by their names."""
    return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()[:16]


def open_folder(place: Place, splits: Sequence[str] = ()) -> Folder:
    """The data set at `place`; archives that lie there are unpacked where it lacks a split. A
    UserError where no layout is found, or two files or folders may be the truth."""
    if place.range is not None:
        images.check_range(place.range, place.channels or 3)
    root = place.root
    if root is None:
        root = place.prepared_dir / f"scenes-{place.num_scenes}"
        numbers = {"num_train": place.num_scenes, "num_val": scenes.NUM_VAL}
        scenes.write_scenes(root, **numbers, size=scenes.SIDE, seed=0)
    folder = layouts.find_folder(root, choice=place.masks)
    needed = () if place.val_fraction is not None else splits
    if (folder is None or not {*needed} <= folder.splits.keys()) and prepare.find_archives(root):
        unpacked = prepare.unpack(root, prepare.path_of(root, place.prepared_dir))
        folder = layouts.find_folder(unpacked, choice=place.masks)
    if folder is None:
        raise UserError(layouts.describe_unknown(root, place.masks))
    folder = replace(folder, place=replace(place, root=root))
    if place.val_fraction is None or place.may_have_splits and len(folder.splits) > 1:
        return folder
    return folders.hold_out(folder, place.val_fraction, place.val_groups)


def measured(
    folder: Folder, pairs: Sequence[folders.Pair], bad_data: BadData
) -> tuple[Folder, images.Measured]:
    """The folder with the range of each channel, and what was measured, which is printed."""
    place = folder.place
    assert place.channels is not None  # else photographs are RGB of 8 bits
    channels = images.measure(
        [pair.photograph for pair in pairs],
        channels=place.channels,
        value_range=place.range,
        bad_data=bad_data,
        progress=partial(tqdm, desc="measure channels", leave=False, disable=None),
    )
    print(channels.describe())
    return replace(folder, place=replace(place, range=channels.value_range)), channels


def open_dataset(
    place: Place | Folder,
    splits: Sequence[str],
    *,
    class_names: Sequence[str] | None = None,
    bad_data: BadData = "raise",
    with_truth: bool = True,
) -> Dataset:
    """The splits of a data set, prepared again where a file of it has changed. Tells on stderr
    where each lies, how large it is, and how many photographs were left out as bad.

    A UserError where the folder cannot be read, or a file of it and `bad_data` is "raise", or its
    classes are not `class_names`, or a split has no masks and `with_truth`.
    """
    folder = place if isinstance(place, Folder) else open_folder(place, splits)
    place = folder.place
    if class_names is not None and tuple(folder.class_names) != tuple(class_names):
        raise UserError(
            f"the network knows the classes {', '.join(class_names)}, and {place.root} has "
            f"{', '.join(folder.class_names)}; they must be the same, in one order"
        )
    lists = {split: folders.read_split(folder, split) for split in splits}
    for split, pairs in lists.items():
        refuse(folders.describe_repeated(pairs, split))
        if with_truth and all(pair.mask is None for pair in pairs):  # as in the tests of servers
            raise UserError(f"{folder.path} has no masks for the split {split}; name another one.")
    parent = prepare.path_of(folder.path, place.prepared_dir)
    rules = masks.rules_of(folder)
    sources, contents = {}, {}
    for split, pairs in lists.items():
        key = folders.fingerprint(folder, pairs)
        key = f"{key[:-1]}s" if bad_data == "skip" else key  # records may be missing
        config = FolderConfig(name=split, pairs=pairs, rules=rules, place=place, bad_data=bad_data)
        path = prepare.prepare(VocFolder, config, parent=parent, fingerprint=key)
        sources[split] = Source(path, split)
        contents[split] = (path / prepare.CONTENT).read_text()
        if skipped := len(pairs) - len(sources[split]):
            print(f"{split}: {skipped} of {len(pairs)} skipped as bad", file=sys.stderr)
        prepare.keep_while_used(path, sources[split])
    read = repr((folder.class_names, place.range, place.channels))
    identity = identity_of({"": read, **contents})
    return Dataset(folder.class_names, sources, identity, folder.class_colors)
