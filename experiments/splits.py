"""Runs and the val splits that they were scored on, for scripts that analyse runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import cli
from tqdm import tqdm

from deeplab_jax import crf, evaluation, runs
from deeplab_jax.config import Config
from deeplab_jax.data import builders, folders, images, layouts, scenes
from deeplab_jax.types import LabelMap, UserError


def reading_of(config: Config, root: Path | None = None) -> folders.Reading:
    """How the run read its data; `root` is other data, which may have splits of its own."""
    data = config.data
    reading = folders.Reading(
        data.range, data.val_fraction, data.val_groups, channels=data.channels
    )
    if root is not None and data.val_fraction is not None:
        folder = layouts.find_folder(root)
        if folder is not None and len(folder.splits) > 1:
            return replace(reading, val_fraction=None)
    return reading


def training_reading(config: Config) -> folders.Reading:
    """`reading_of` with the masks that the run is trained on in place of the data set's own."""
    reading, masks = reading_of(config), config.data.train_masks
    return replace(reading, given_masks=masks and (config.data.train_split, masks))


def training_root(config: Config) -> Path:
    """Folder of the photographs to train on, drawn where the run draws its own."""
    if config.data.root is not None:
        return config.data.root
    return scenes.prepare_scenes(config.prepared_dir, config.data.num_scenes)


AUGMENTED = {"train_aug": (10_582, "train", 1_464), "trainval_aug": (12_031, "trainval", 2_913)}
"""Splits of VOC 2012 with SBD's masks: number of photographs; VOC's own split, and its number."""


def with_train_split(config: Config) -> Config:
    """The config with a split to train on: the paper's train_aug of PASCAL VOC 2012, train of other
    data, where it names none.

    Raises:
      UserError: the split has masks of SBD, and the data are VOC 2012 without SBD.
    """
    data, split = config.data, config.data.train_split
    if split not in (None, *AUGMENTED):
        return config
    if data.root is not None and data.val_fraction is None:
        wanted = split or "train_aug"
        folder = layouts.find_folder(data.root)
        if folder is None or layouts.is_voc2012(folder):  # SBD may lie there as an archive
            folder = builders.open_folder(data.root, config.prepared_dir, (wanted,))
        if layouts.is_voc2012(folder):
            split = wanted
        if split in AUGMENTED and layouts.is_voc2012(folder) and split not in folder.splits:
            number, own, own_number = AUGMENTED[split]
            raise UserError(
                f"{data.root} holds PASCAL VOC 2012 without SBD, whose masks the paper trains on "
                f"too ({split}, {number:,} photographs): `python experiments/download_data.py "
                f"voc_aug {data.root}` fetches them, or give --data.train-split {own} to train on "
                f"VOC's own {own_number:,}"
            )
    return replace(config, data=replace(data, train_split=split or "train"))


def with_bands(config: Config) -> Config:
    """The config with range and mean of each channel, measured over the training split where
    neither the command line, nor the run, nor the weights give them; prints them.

    Configs without data.channels are left as they are.
    """
    data, mean = config.data, config.model.mean_bgr
    if data.channels is None or mean:
        return config
    folder = builders.open_folder(
        training_root(config), config.prepared_dir, (data.train_split,), reading_of(config)
    )
    found = images.measure(
        [pair.photograph for pair in folders.read_split(folder, data.train_split)],
        channels=data.channels,
        value_range=data.range,
        bad_data=data.bad_data,
        progress=partial(tqdm, desc="measure channels", leave=False, disable=None),
    )
    print("\n".join(found.describe()))
    model = replace(config.model, mean_bgr=found.mean[::-1] if data.channels == 3 else found.mean)
    return replace(config, model=model, data=replace(data, range=found.value_range))


def crf_options(options: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Options of crf.refine; where they name no bands, those that the run's CRF compares."""
    return {**options, "bands": options.get("bands") or runs.crf_bands(config)}


def find_root(config: Config, root: Path | None, prepared_dir: Path) -> Path:
    """Folder of the photographs to score on: `root`, or that of the run.

    A run's own scenes are drawn again.

    Raises:
      UserError: neither is known, or that of the run is not there.
    """
    if root is not None:
        return root
    known = config.data.val_root or config.data.root
    if known is None and config.data.num_scenes:
        return scenes.prepare_scenes(prepared_dir, config.data.num_scenes)
    if known is None:
        raise UserError("no photographs to score on: give --root FOLDER")
    if not known.exists():
        raise UserError(
            f"the run read its photographs from {known}, which is not there; give "
            "--root FOLDER, where they are"
        )
    return known


def open_val(workdir: Path, *, root: Path | None, prepared_dir: Path) -> builders.Source:
    """The val split of a run, from `root` where it is given, see `find_root`.

    Raises:
      UserError: as `find_root`, or the classes are not those of the run.
    """
    config, class_names = runs.read_config(workdir)
    split = config.data.val_split
    return builders.open_dataset(
        find_root(config, root, prepared_dir),
        prepared_dir=prepared_dir,
        splits=(split,),
        class_names=class_names,
        reading=reading_of(config, root),
    ).splits[split]


def named(workdirs: Sequence[Path]) -> dict[str, Path]:
    """Work folders by their labels in a legend: names, or paths where names are the same.

    Raises:
      UserError: there is none, or one is given twice.
    """
    if not workdirs:
        raise UserError("give the work folder of a run, or several")
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError("a work folder is given twice")
    names = [workdir.absolute().name for workdir in workdirs]
    if len(set(names)) < len(names):
        names = [str(workdir) for workdir in workdirs]
    return dict(zip(names, workdirs, strict=True))


def predictions(
    workdir: Path,
    *,
    root: Path | None,
    with_crf: bool,
    given_options: Mapping[str, Any] | None = None,
    crf_params: str | None,
    prepared_dir: Path,
) -> tuple[int, Iterator[tuple[dict, list[LabelMap]]]]:
    """Number of classes; each photograph's item, and its labels before and after the CRF.

    Runs the network of a work folder as the run scored it, on the photographs of `root`, or those
    of the run where it is None. `crf_params` are for choose_params, `given_options` for crf.refine.
    """
    config, _ = runs.read_config(workdir)
    model, variables, meta = runs.load(workdir)
    params = crf.choose_params(crf_params, learnt=meta.get("crf"), model=meta["model"])
    options = crf_options(given_options or {}, config)
    return model.num_classes, evaluation.each_prediction(
        model,
        variables,
        open_val(workdir, root=root, prepared_dir=prepared_dir),
        partial(cli.refine_function(), params=params, **options) if with_crf else None,
        evaluation.InferenceOptions(**asdict(config.eval)),
        progress=partial(tqdm, desc=workdir.name, unit="image", leave=False, disable=None),
    )
