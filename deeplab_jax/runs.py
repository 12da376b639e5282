"""What a run leaves in its work folder, and how it goes on.

config.json          every option, the class names, versions
metrics.jsonl        one line a logged update or score
checkpoints/<step>/  state after that many updates: `model` (parameters and batch
                     statistics) and `optimizer`
lock                 held while a run is in the folder; it dies with its process
"""

import fcntl
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from deeplab_jax import train
from deeplab_jax.config import Config, from_dict, result_fields, to_dict
from deeplab_jax.models.conv import formulation_for
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import UserError
from deeplab_jax.weights import files, sources

VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")

Checkpoints = ocp.CheckpointManager


def hold(workdir: Path) -> IO:
    """Makes the folder and holds it for this process until the returned file is closed.

    Raises:
      UserError: another run holds it, or it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("w")
    except OSError as error:
        raise UserError(f"the work folder {workdir} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another run is in {workdir}; wait for it, or choose another --workdir"
        ) from None
    return lock


def record_config(
    workdir: Path,
    config: Config,
    class_names: tuple[str, ...],
    *,
    accumulation: int,
    decoder: str,
) -> None:
    """Writes config.json, or compares with the one there.

    `accumulation` counts the steps an update is split into. A trained batch norm normalises
    over a step, so there, and only there, it is part of the result. `decoder` names what
    decodes photographs: two of them differ by a grey level here and there.

    Raises:
      UserError: a field that the result depends on differs from the run in the folder.
    """
    path = workdir / "config.json"
    if path.exists():
        _refuse_difference(path, config, class_names, accumulation)
    record = {
        "config": to_dict(config),
        "class_names": class_names,
        "accumulation": accumulation,
        "versions": {name: version(name) for name in VERSIONS}
        | {"python": platform.python_version(), "decoder": decoder},
    }
    _write_whole(path, json.dumps(record, indent=2) + "\n")


def _refuse_difference(
    path: Path, config: Config, class_names: tuple[str, ...], accumulation: int
) -> None:
    there, names_there = read_config(path.parent)
    before, now = dict(result_fields(there)), dict(result_fields(config))
    before["class names"], now["class names"] = names_there, class_names
    if config.model.norm == "trained":
        name = "accumulation steps (from num_devices and max_per_device)"
        before[name] = json.loads(path.read_text())["accumulation"]
        now[name] = accumulation
    for name, value in now.items():
        if before[name] != value:
            raise UserError(
                f"{path.parent} holds a run with {name} {before[name]}, and {value} was asked for; "
                "give the old value to go on with it, or another --workdir"
            )


def read_config(workdir: Path) -> tuple[Config, tuple[str, ...]]:
    """The options and class names of the run in a work folder.

    Raises:
      UserError: there is no run, or one of another version of this software.
    """
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text())
        return from_dict(Config, record["config"]), tuple(record["class_names"])
    except OSError:
        raise UserError(f"{workdir} is not a work folder: it holds no config.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the options of a run: {error}") from None


def config_of(source: Path) -> Config:
    """The options of the run in a work folder; the paper's for a weight file."""
    return read_config(source)[0] if source.is_dir() else Config()


def data_root(config: Config, root: Path | None, prepared_dir: Path) -> Path:
    """The photographs to score on: `root`, or else those of the run.

    Raises:
      UserError: neither is known.
    """
    if root is None and config.data.root is None and not config.data.num_scenes:
        raise UserError("no photographs to score on: give --root FOLDER")
    return root or config.data.root or prepared_dir / f"scenes-{config.data.num_scenes}"


def open_checkpoints(workdir: Path, *, keep_newest: int = 2) -> Checkpoints:
    """The checkpoints of a work folder; the newest ones and the best-scored one are kept."""
    policy = keep.AnyPreservationPolicy(
        [keep.LatestN(keep_newest), keep.BestN(get_metric_fn=lambda m: m["mean_iou"], n=1)]
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
    return Checkpoints(
        (workdir / "checkpoints").absolute(), item_names=("model", "optimizer"), options=options
    )


def save(
    checkpoints: Checkpoints, state: train.TrainState, *, score: Mapping[str, float] | None = None
) -> None:
    """Starts writing the state; `checkpoints.wait_until_finished()` waits for the disk."""
    step = int(state.step)
    if step in checkpoints.all_steps():
        return
    model, optimizer = _items(state)
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(model), optimizer=ocp.args.StandardSave(optimizer)
        ),
        metrics=dict(score) if score else None,
    )


def restore(checkpoints: Checkpoints, state: train.TrainState) -> train.TrainState:
    """The newest checkpoint in the shape of `state`; `state` itself where there is none."""
    step = checkpoints.latest_step()
    if step is None:
        return state
    model, optimizer = jax.tree.map(_abstract, _items(state))
    found = checkpoints.restore(
        step,
        args=ocp.args.Composite(
            model=ocp.args.StandardRestore(model), optimizer=ocp.args.StandardRestore(optimizer)
        ),
    )
    return train.TrainState(
        step=found["optimizer"]["step"],
        params=found["model"]["params"],
        batch_stats=found["model"]["batch_stats"],
        optimizer=found["optimizer"]["optimizer"],
    )


def _items(state: train.TrainState) -> tuple[dict, dict]:
    model = {"params": state.params, "batch_stats": state.batch_stats}
    return model, {"step": state.step, "optimizer": state.optimizer}


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def append_metrics(workdir: Path, record: Mapping[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; one that was cut off by a kill is left out."""
    path = workdir / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def forget_metrics_after(workdir: Path, step: int) -> None:
    """Drops the lines of updates that a resumed run does again."""
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    _write_whole(workdir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept))


def write_score(path: Path, score: Mapping[str, Any]) -> None:
    """score.json: `mean_iou`, the other scores, and IoU by class name (null: class absent)."""
    _write_whole(path, json.dumps(score, indent=2) + "\n")


def load(path: Path | str) -> tuple[DeepLabV2, dict[str, Any], dict[str, Any]]:
    """The network of a work folder or of a weight file: (model, variables, meta).

    `meta` holds `class_names`, `model` with the fields of the network, where the weights come
    from, and `crf` with the kernels' weights where a CRF was trained with them.

    Raises:
      UserError: nothing to load there.
    """
    given, meta = read_weights(Path(path))
    if not meta["class_names"]:
        raise UserError(f"{path} has no trained last layer: train it first, with --weights {path}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["model"].items()}
    formulation = formulation_for(jax.default_backend())
    model = DeepLabV2(num_classes=len(meta["class_names"]), formulation=formulation, **fields)
    shapes = jax.eval_shape(lambda: train.init_variables(model, jax.random.key(0)))
    return model, files.fill(_blank(shapes), given), meta


def read_weights(
    path: Path, *, head: sources.Head | None = None
) -> tuple[files.Flat, dict[str, Any]]:
    """Arrays by name and `meta`, as in `load`, of a work folder or any weight file.

    `head` is the head that VGG's fully connected layers of ImageNet are thinned to.
    """
    return _read_run(path) if path.is_dir() else sources.read(path, head=head)


def _blank(shapes):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _read_run(workdir: Path) -> tuple[files.Flat, dict[str, Any]]:
    """The newest checkpoint as NumPy arrays, whatever devices it was saved from.

    Read beside the manager of a run that may be going on: nothing is cleaned up.
    """
    config, class_names = read_config(workdir)
    folder = (workdir / "checkpoints").absolute()
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint yet; train first")
    path, reader = folder / str(max(steps)) / "model", ocp.PyTreeCheckpointer()
    as_numpy = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
    )
    found = reader.restore(path, ocp.args.PyTreeRestore(restore_args=as_numpy))
    learnt = found["params"].pop("crf", None)
    meta = {
        "model": asdict(config.model),
        "crf": learnt and {name: float(weight) for name, weight in learnt.items()},
        "class_names": class_names,
        "source": str(workdir),
        "step": max(steps),
    }
    return files.flatten(found), meta


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
