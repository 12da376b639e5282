"""Runs and the val split that each was scored on, for the scripts that look at them."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from deeplab_jax import crf, evaluation, runs
from deeplab_jax.config import Config
from deeplab_jax.data import builders, folders, layouts
from deeplab_jax.types import LabelMap, UserError


def reading_of(config: Config, root: Path | None = None) -> folders.Reading:
    """How the run read its data; `root` is other data, which may have splits of its own."""
    data = config.data
    reading = folders.Reading(data.range, data.val_fraction, data.val_groups)
    if root is not None and data.val_fraction is not None:
        folder = layouts.find_folder(root)
        if folder is not None and len(folder.splits) > 1:
            return replace(reading, val_fraction=None)
    return reading


def open_val(config: Config, *, prepared_dir: Path) -> builders.Source:
    """Read from where the run read it, drawn scenes under `prepared_dir`."""
    root = runs.data_root(config, None, prepared_dir)
    split = config.data.val_split
    dataset = builders.open_dataset(
        root, prepared_dir=prepared_dir, splits=(split,), reading=reading_of(config)
    )
    return dataset.splits[split]


def named(workdirs: Sequence[Path]) -> dict[str, Path]:
    """Work folders by what a legend calls them: their names, or paths where names are the same.

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
    workdir: Path, *, with_crf: bool, crf_params: str | None, prepared_dir: Path
) -> tuple[int, Iterator[tuple[dict, list[LabelMap]]]]:
    """Number of classes; each photograph's item, and its labels before and after the CRF.

    Runs the network of a work folder as the run scored it. `crf_params` are for choose_params.
    """
    config, _ = runs.read_config(workdir)
    model, variables, meta = runs.load(workdir)
    params = crf.choose_params(crf_params, learnt=meta.get("crf"))
    return model.num_classes, evaluation.each_prediction(
        model,
        variables,
        open_val(config, prepared_dir=prepared_dir),
        partial(crf.refine, params=params) if with_crf else None,
        **asdict(config.eval),
        progress=partial(tqdm, desc=workdir.name, unit="image", leave=False),
    )
