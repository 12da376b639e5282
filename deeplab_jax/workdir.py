"""What a run leaves in its work folder.

config.json          every option as it was asked and as it was completed, the class names, versions
metrics.jsonl        one line a logged update or score
score.json           the score at the end
checkpoints/<step>/  state after that many updates: `model` (parameters and batch
                     statistics) and `optimizer` (everything else); see checkpoints.py
lock                 held while a run is in the folder; it dies with its process
"""

import contextlib
import datetime
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

from deeplab_jax import checkpoints, storage, train
from deeplab_jax.config import VERSION, Config, from_dict, to_dict
from deeplab_jax.types import UserError

VERSIONS = (
    *("deeplab_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets"),
    *("numpy", "pillow"),
)

CHECKPOINTS = "checkpoints"


def hold(workdir: Path) -> IO:
    """Makes the folder and holds it for this process until the returned file is closed; a UserError
    where another run holds it."""
    with storage.writing(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("w")
        free = storage.try_lock(lock)
    if not free:
        lock.close()
        raise UserError(f"another run is in {workdir}; wait for it, or choose another --workdir")
    return lock


class Run(NamedTuple):
    """What config.json says of a run."""

    config: Config
    """The completed options."""
    class_names: tuple[str, ...]
    record: Mapping[str, Any]
    """The whole file."""


def read_run(workdir: Path) -> Run:
    """The run in a work folder, one of version 2 too; a UserError where there is none."""
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text())
        number = record.get("version", 1)
        if not 2 <= number <= VERSION:
            other = "newer" if number > VERSION else "older"
            raise UserError(
                f"{path} is of version {number}, and this software reads 2 to {VERSION}; install "
                f"the {other} deeplab_jax that wrote it"
            )
        values = record["config"]
        if number == 2 and "mirror" in values["data"]:
            values["data"]["flip"] = values["data"]["mirror"]
        config = from_dict(Config, values, strict=number == VERSION)
        return Run(config, tuple(record["class_names"]), record)
    except OSError:
        raise UserError(f"{workdir} is not a work folder: it holds no config.json") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as the options of a run: {error}") from None


def is_begun(workdir: Path) -> bool:
    """Whether a run in the folder has options and a checkpoint to go on from."""
    return (workdir / "config.json").exists() and bool(checkpoints.steps(workdir / CHECKPOINTS))


def record_run(
    workdir: Path, asked: Config, config: Config, class_names: tuple[str, ...], **described: Any
) -> None:
    """Writes config.json: the options as `asked` and as completed, versions, and `described`.

    Of a run that goes on it keeps when it was started, and tells other versions on stderr.
    """
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from its sources
            versions[name] = metadata.version(name)
    record = {
        "version": VERSION,
        "asked": to_dict(asked),
        "config": to_dict(config),
        "class_names": class_names,
        "versions": versions,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **described,
    }
    if is_begun(workdir):
        before = read_run(workdir).record
        record["started"] = before["started"]
        for name, value in record["versions"].items():
            if (was := before["versions"].get(name)) is not None and was != value:
                print(f"note: {workdir} goes on with {name} {value} after {was}", file=sys.stderr)
    _write_whole(workdir / "config.json", json.dumps(record, indent=2) + "\n")


def save(saver: checkpoints.Saver, state: train.TrainState) -> None:
    """Starts writing the state; `saver.wait()` waits for the disk. The best-scored step is kept."""
    saver.save(int(state.step), items(state), keep=best_step(saver.folder.parent))


def restore(workdir: Path, state: train.TrainState) -> train.TrainState | None:
    """The newest whole checkpoint, as NumPy arrays in the shape of `state`; None without one.

    For the process that holds the folder: leftovers and damaged steps are put out of the way.
    """
    folder = workdir / CHECKPOINTS
    step = checkpoints.recover(folder)
    if step is None:
        return None
    found = {name: checkpoints.read(folder, step, name, t) for name, t in items(state).items()}
    return train.TrainState(**found["model"], **found["optimizer"])


def items(state: train.TrainState) -> dict[str, dict[str, Any]]:
    """The two trees of arrays that a checkpoint holds."""
    model = {"params": state.params, "batch_stats": state.batch_stats}
    rest = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in model}
    return {"model": model, "optimizer": rest}


def append_metrics(workdir: Path, record: Mapping[str, Any]) -> None:
    """Adds one line to metrics.jsonl, null for NaN; it is on disk when this returns."""
    path = workdir / "metrics.jsonl"
    with storage.writing(path), path.open("a") as file:
        file.write(json.dumps(without_nan(record)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def without_nan(value: Any) -> Any:
    """The value with null, as JSON has it, for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: without_nan(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return read_lines(workdir / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON of each line; one that was cut off by a kill is left out."""
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # no JSON, or not even text
            records.append(json.loads(line))
    return records


def best_step(workdir: Path) -> int | None:
    """The update with the highest mean IoU in metrics.jsonl, the first of equals."""
    scored = [r for r in read_metrics(workdir) if r["step"] and r.get("mean_iou") is not None]
    return max(scored, key=lambda r: r["mean_iou"])["step"] if scored else None


def is_scored(workdir: Path, step: int) -> bool:
    """Whether metrics.jsonl holds a score after that many updates."""
    return any(r["step"] == step and "mean_iou" in r for r in read_metrics(workdir))


def forget_metrics_after(workdir: Path, step: int) -> None:
    """Drops the lines of updates that a resumed run does again."""
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    _write_whole(workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))


def write_score(path: Path, score: Mapping[str, Any]) -> None:
    """score.json: `mean_iou`, the other scores, and IoU by class name (null: class absent)."""
    _write_whole(path, json.dumps(without_nan(score), indent=2) + "\n")


def _write_whole(path: Path, text: str) -> None:
    """The file has its old content or all of the new one, whenever the process ends."""
    with storage.written_whole(path) as partial:
        partial.write_text(text)
