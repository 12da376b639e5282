"""What a run leaves in its work folder, and how it is resumed.

config.json          every option, the class names, versions
metrics.jsonl        one line a logged update or score
checkpoints/<step>/  state after that many updates: `model` (parameters and batch
                     statistics) and `optimizer` (everything else); see checkpoints.py
lock                 held while a run is in the folder; it dies with its process
"""

import contextlib
import datetime
import importlib.util
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Shaped, UInt8

import deeplab_jax
from deeplab_jax import (
    checkpoints,
    evaluation,
    losses,
    optim,
    ranges,
    storage,
    train,
    visualization,
)
from deeplab_jax import config as configs
from deeplab_jax.config import (
    CHANGED,
    VERSION,
    Config,
    Request,
    depends_on_share,
    from_dict,
    keep_result_fields,
    result_fields,
    to_dict,
    translate,
)
from deeplab_jax.evaluation import InferenceOptions
from deeplab_jax.models import crf_layer, deeplab
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.renamed import answering
from deeplab_jax.types import Array, Probs, UserError
from deeplab_jax.weights import branches, files, first_layer, names, sources

VERSIONS = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")

CHECKPOINTS = "checkpoints"

CONVENTIONS = ("alignment", "pool_kernel_size", "stride_placement", "mean_bgr")
"""Fields of the model that weights bring with them."""


def hold(workdir: Path) -> IO:
    """Makes the folder and holds it for this process until the returned file is closed.

    Raises:
      UserError: another run holds it, or it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _refuse_links(workdir)
        lock = (workdir / "lock").open("w")
        free = storage.try_lock(lock)
    except OSError as error:
        raise UserError(f"the work folder {workdir} cannot be used: {error.strerror}") from None
    if not free:
        lock.close()
        raise UserError(f"another run is in {workdir}; wait for it, or choose another --workdir")
    return lock


def _refuse_links(workdir: Path) -> None:
    """Refuses links: in a folder from elsewhere they could redirect what a run writes."""
    inside, folders = workdir.resolve(), (workdir / CHECKPOINTS, workdir / "tensorboard")
    files = (path for path in workdir.iterdir() if path in folders or not path.is_dir())
    for path in (*files, *(path for folder in folders for path in folder.rglob("*"))):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise UserError(
                f"{path} leads out of the work folder, and a run writes nowhere else; remove it, "
                "or let the work folder itself be the link"
            )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An error of the file system as a sentence that says what could not be written.

    Raises:
      UserError: such an error came.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be written ({error.strerror}); mend that, or make "
            "room, and type the same command again"
        ) from error


def continued(request: Request) -> Config:
    """The config of a request; where its work folder holds a run, with that run's values.

    Only what was typed may differ from the run, and is refused by `record_config` where it does.
    The number of photographs at once, which memory may have determined, is the
    run's too. A run of version 1 names no preset; its values are kept for the fields whose defaults
    have changed since.
    """
    config = request.config
    if config.data.channels is not None and "model.mean_bgr" not in request.typed:
        # Empty until it is known: from the run, from weights for these channels, or measured.
        config = replace(config, model=replace(config.model, mean_bgr=()))
    assert config.workdir is not None  # a request has one, if only its preset's
    try:
        record = _read_record(config.workdir)
    except UserError:
        return config
    if record.get("preset") in {request.preset, *request.formerly}:
        kept = {name for name, _ in result_fields(config)}
    else:
        kept = CHANGED if record["version"] == 1 else frozenset()
    there, _ = read_config(config.workdir)
    return keep_result_fields(config, there, (kept | {"max_per_device"}) - request.typed)


def record_config(
    workdir: Path,
    config: Config,
    preset: str,
    class_names: tuple[str, ...],
    *,
    photographs: str,
    accumulation: int,
    decoder: str,
    **described: Any,
) -> None:
    """Writes config.json, or compares with the one there and tells other versions on stderr.

    `photographs` is the data set's identity. `accumulation` counts the steps an update is split
    into. It is part of the result only where `depends_on_share`: a trained batch norm and a batch
    loss are computed over a step. `decoder` names what decodes photographs: two decoders may
    differ by a grey level. `described` is recorded for readers: the command, the device, sizes
    of the splits, the classes' colours.

    Raises:
      UserError: a field that the result depends on differs from the run in the folder.
    """
    path = workdir / "config.json"
    record = {
        "version": VERSION,
        "preset": preset,
        "config": to_dict(config),
        "class_names": class_names,
        "photographs": photographs,
        "accumulation": accumulation,
        "versions": {name: version(name) for name in VERSIONS}
        | {"deeplab_jax": deeplab_jax.__version__}
        | {"python": platform.python_version(), "decoder": decoder},
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **described,
    }
    if path.exists():
        _compare(workdir, config, record)
        record["started"] = _read_record(workdir).get("started")
    _write_whole(path, json.dumps(record, indent=2) + "\n")


def _compare(workdir: Path, config: Config, record: Mapping[str, Any]) -> None:
    there, names_there = read_config(workdir)
    before = {**record, **json.loads((workdir / "config.json").read_text())}
    results = dict(result_fields(there)) | {"class names": names_there}
    wanted = dict(result_fields(config)) | {"class names": record["class_names"]}
    names = {"photographs": "photographs (their names and sizes in bytes) of the fingerprint"}
    if depends_on_share(config):
        names["accumulation"] = "accumulation steps (from num_devices and max_per_device)"
    for key, name in names.items():
        results[name], wanted[name] = before[key], record[key]
    for name, value in wanted.items():
        if results[name] != value:
            raise UserError(
                f"{workdir} holds a run with {name} {results[name]}, and {value} was asked for; "
                "give the old value to go on with it, or another --workdir"
            )
    for name, value in record["versions"].items():
        if (was := before["versions"].get(name)) is not None and was != value:
            print(f"note: {workdir} goes on with {name} {value} after {was}", file=sys.stderr)


def read_config(workdir: Path) -> tuple[Config, tuple[str, ...]]:
    """The options and class names of the run in a work folder, one of an older version too.

    Raises:
      UserError: there is no run, or one of a newer version of this software.
    """
    record = _read_record(workdir)
    path = workdir / "config.json"
    if record["version"] > VERSION:
        raise UserError(
            f"{path} is of version {record['version']}, and this software reads those up to "
            f"{VERSION}; install a newer deeplab_jax"
        )
    try:
        values = translate(record["config"], record["version"])
        return from_dict(Config, values), tuple(record["class_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the options of a run: {error}") from None


def read_palette(workdir: Path) -> visualization.Palette:
    """The colours of the classes of the run in a work folder."""
    record = _read_record(workdir)
    return visualization.palette(record["class_names"], record.get("class_colors"))


def _read_record(workdir: Path) -> dict[str, Any]:
    """What config.json holds; `version` is 1 where it has none."""
    path = workdir / "config.json"
    try:
        return {"version": 1, **json.loads(path.read_text())}
    except OSError:
        raise UserError(f"{workdir} is not a work folder: it holds no config.json") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as the options of a run: {error}") from None


def config_of(source: Path, meta: Mapping[str, Any]) -> Config:
    """The options of the run in a work folder; the paper's for a weight file, with the channels
    that its header `meta` tells of."""
    if source.is_dir():
        return read_config(source)[0]
    config, told = Config(), meta.get("bands")
    if not told:
        return config
    data = replace(config.data, **{name: _tuple(told[f"data.{name}"]) for name in BAND_FIELDS})
    return replace(config, data=data, crf_bands=_tuple(told["crf_bands"]))


BAND_FIELDS = ("channels", "range", "shown_bands")
"""Fields of the data that say what a network's channels are."""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def describe_bands(config: Config) -> dict[str, Any]:
    """What the header of weights says of the channels."""
    of_data = {f"data.{name}": getattr(config.data, name) for name in BAND_FIELDS}
    return {**of_data, "crf_bands": config.crf_bands}


def shown_bands(config: Config) -> tuple[int, ...] | None:
    """The channels that pictures show as colours; None where photographs are RGB."""
    if config.data.channels is None:
        return None
    return config.data.shown_bands or visualization.default_bands(config.data.channels)


def crf_bands(config: Config) -> tuple[int, ...] | None:
    """The channels that the CRF compares; None where photographs are RGB."""
    return config.crf_bands or shown_bands(config)


def open_checkpoints(workdir: Path, **options: Any) -> checkpoints.Saver:
    """Where the run in a work folder saves; the newest steps and the best-scored one are kept.

    Options are those of checkpoints.Saver.
    """
    return checkpoints.Saver(workdir / CHECKPOINTS, **options)


def save(saver: checkpoints.Saver, state: train.TrainState) -> None:
    """Starts writing the state; `saver.wait()` waits for the disk."""
    best = best_step(saver.folder.parent)
    saver.save(int(state.step), _items(state), keep=() if best is None else (best,))


def restore(workdir: Path, state: train.TrainState) -> train.TrainState | None:
    """The newest whole checkpoint, as NumPy arrays in the shape of `state`; None without one.

    For the process that holds the folder: leftovers and damaged steps are put out of the way.
    """
    folder = workdir / CHECKPOINTS
    step = checkpoints.recover(folder)
    if step is None:
        return None
    items = {name: checkpoints.read(folder, step, name, t) for name, t in _items(state).items()}
    return train.TrainState(**items["model"], **items["optimizer"])


def _items(state: train.TrainState) -> dict[str, dict[str, Any]]:
    model = {"params": state.params, "batch_stats": state.batch_stats}
    rest = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in model}
    return {"model": model, "optimizer": rest}


def is_begun(workdir: Path) -> bool:
    """Whether a run in the folder has options and a checkpoint to go on from."""
    return (workdir / "config.json").exists() and bool(checkpoints.steps(workdir / CHECKPOINTS))


def start_point(
    request: Request, config: Config
) -> tuple[Config, files.Flat | None, tuple[str, ...]]:
    """The config with the conventions that --weights were trained with, their arrays and classes.

    `config` is what `continued` made of the request. What was typed, or what the preset fixes,
    stays; either way it is printed. A run that goes on has all of it already and reads no weights.
    """
    if config.weights is None:
        return config, None, ()
    assert config.workdir is not None  # as in `continued`
    if is_begun(config.workdir):
        begun, _ = read_config(config.workdir)
        free = [name for name in CONVENTIONS if f"model.{name}" not in request.typed]
        model = replace(config.model, **{name: getattr(begun.model, name) for name in free})
        return replace(config, model=model, fresh_head=begun.fresh_head), None, ()
    given, meta = read_given_weights(config)
    if not config.fresh_head:
        given, meta = branches.choose(config.weights, given, meta, None)
    config = _with_channels(request, config, given, meta)
    config = replace(config, model=_with_conventions(request, config, meta["model"]))
    # A network of ImageNet has no last layer that could fit.
    config = replace(config, fresh_head=config.fresh_head or not meta["class_names"])
    return config, given, tuple(meta["class_names"])


def _with_channels(
    request: Request, config: Config, given: files.Flat, meta: Mapping[str, Any]
) -> Config:
    """The config with mean and range of weights that were trained on as many channels; prints
    where they come from, and what becomes of a first layer for other channels.

    Raises:
      UserError: the weights are for other channels than the data, and not for RGB.
    """
    channels, told = config.data.channels, meta.get("bands") or {}
    theirs = told.get("data.channels")
    if channels is None and theirs not in (None, 3):
        raise UserError(
            f"{config.weights} was trained on photographs of {theirs} channels; give "
            f"--data.channels {theirs}, or other weights"
        )
    if channels is None:
        return config
    if theirs != channels:
        print(first_layer.describe(given, channels, fresh=config.fresh_first_layer))
        return config
    data, model = config.data, config.model
    if "data.range" not in request.typed:
        data = replace(data, range=_tuple(told["data.range"]))
    if "model.mean_bgr" not in request.typed:
        model = replace(model, mean_bgr=tuple(meta["model"]["mean_bgr"]))
    print(f"range and mean of the {channels} channels are those of {config.weights}, or as given")
    return replace(config, data=data, model=model)


def _with_conventions(
    request: Request, config: Config, theirs: Mapping[str, Any]
) -> configs.ModelConfig:
    """The model with the CONVENTIONS of the weights, except for fields that were typed or that the
    preset fixes; prints what differs and which value is used."""
    model = config.model
    for name in CONVENTIONS:
        if name == "mean_bgr" and config.data.channels is not None:
            continue  # see _with_channels
        ours, value = getattr(model, name), theirs.get(name, getattr(model, name))
        value = tuple(value) if isinstance(value, list) else value
        if value == ours:
            continue
        if f"model.{name}" in request.typed | request.fixed:
            typed = f"model.{name}" in request.typed
            who = "given" if typed else f"the preset {request.preset} has it"
            print(f"model.{name} is {ours}, as {who}; {config.weights} was trained with {value}")
        else:
            print(f"model.{name} is {value}, as {config.weights} was trained with")
            model = replace(model, **{name: value})
    return model


def refuse_other_classes(
    config: Config, given: tuple[str, ...], class_names: tuple[str, ...]
) -> None:
    """Refuses to keep a last layer that was trained for other classes of the same number.

    Weights whose classes are only numbered are accepted; another number of classes is refused
    where the arrays are compared.

    Raises:
      UserError: names that both have, and that differ.
    """
    numbered = all(name == f"class {i}" for i, name in enumerate(given))
    if config.fresh_head or numbered or len(given) != len(class_names):
        return
    pairs = enumerate(zip(given, class_names, strict=True))
    first = next((i for i, (a, b) in pairs if a.casefold() != b.casefold()), None)
    if first is None:
        return
    raise UserError(
        f"{config.weights} was trained for other classes: its class {first} is {given[first]!r}, "
        f"and that of the data set is {class_names[first]!r}; give --fresh-head to start the last "
        "layer from scratch, or, if they mean the same, write the names of the weights into "
        "labels.txt"
    )


def read_given_weights(config: Config) -> tuple[files.Flat, dict[str, Any]]:
    """What --weights names, as `read_weights` gives it."""
    assert config.weights is not None  # callers have checked that there are some
    model = config.model
    head = sources.Head(model.aspp_rates, model.head_kernel_size, model.head_width)
    return read_weights(config.weights, head=head)


def append_metrics(workdir: Path, record: Mapping[str, Any]) -> None:
    """Adds one line to metrics.jsonl, null for NaN; it is on disk when this returns."""
    path = workdir / "metrics.jsonl"
    line = {name: value if _is_known(value) else None for name, value in record.items()}
    with writing(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _is_known(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that was cut off by a kill is left out."""
    path = workdir / "metrics.jsonl"
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
    _write_whole(path, json.dumps(score, indent=2) + "\n")


class Segmenter(NamedTuple):
    """A network with its weights and classes; `model, variables, meta = segmenter` unpacks it."""

    model: DeepLabV2
    variables: Mapping[str, Any]
    """`params` and, where there is batch norm, `batch_stats`."""
    meta: Mapping[str, Any]
    """`class_names`, `model` with the fields of the network, where the weights come from, and `crf`
    with the kernels' weights where a CRF was trained with them."""

    def predict(
        self,
        image: Shaped[Array, "h w *channels"],
        options: InferenceOptions = InferenceOptions(),
        **changes: Any,
    ) -> Probs:
        """Class probabilities of one photograph, as evaluation.predict gives them.

        It is RGB uint8 `[h, w, 3]`. For a run with data.channels it is `[h, w, channels]` with the
        values of its files, uint8 or such as the run's range makes 8 bits of; `[h, w]` will do for
        one channel.
        """
        image = self._in_8_bits(image)
        return evaluation.predict(self.model, self.variables, image, options, **changes)

    def _in_8_bits(self, image: Shaped[Array, "h w *channels"]) -> Shaped[Array, "h w *channels"]:
        told = self.meta.get("bands") or {}
        channels, value_range = told.get("data.channels"), told.get("data.range")
        if channels == 1 and image.ndim == 2:
            image = image[..., None]
        if value_range is None or image.dtype == np.uint8 or image.shape[2:] != (channels,):
            return image  # evaluation.predict refuses what does not fit
        return ranges.to_8_bits(np.asarray(image), value_range)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.meta["class_names"])

    @property
    def palette(self) -> UInt8[np.ndarray, "c 3"]:
        """An RGB colour of each class, as in the pictures."""
        colors = visualization.palette(self.class_names, self.meta.get("class_colors"))
        return colors[: len(self.class_names)]


def load(path: Path | str, *, average: bool = False, model_file: str | None = None) -> Segmenter:
    """The network of a work folder, a weight file, or a name of published weights such as "voc12".

    The names are those of weights.names; their files are downloaded once. `average` takes the
    averaged parameters of a run with --ema-decay. `model_file` is the FILE.py:FUNCTION that a
    network of your own is built by. A work folder names its own; a weight file may come from
    elsewhere, and what it names is not run unless it is given here.

    Raises:
      UserError: nothing to load there, the weights do not fit the network, or there is no average.
    """
    source = Path(path)
    if average and not source.is_dir():
        raise UserError(
            f"{path} is no work folder, and only a run with --ema-decay keeps averaged parameters; "
            "leave out the option for the average"
        )
    read = _read_run(source, average=True) if average else read_weights(source)
    given, meta = branches.choose(source, *read, None)
    if not meta["class_names"]:
        raise UserError(f"{path} has no trained last layer: train it first, with --weights {path}")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["model"].items()}
    named = meta.get("model_file")
    if named and model_file is None and not source.is_dir():
        raise UserError(
            f"the network of {path} is built by {named}, which is not run because a file says so; "
            "give it as model_file=..., if it is your own"
        )
    model = network(fields, len(meta["class_names"]), model_file=model_file or named)
    return Segmenter(model, files.fill(_blank(train.variable_shapes(model)), given), meta)


def read_weights(
    path: Path, *, head: sources.Head | None = None
) -> tuple[files.Flat, dict[str, Any]]:
    """Arrays by name and `meta`, as in `load`, of a work folder, any weight file, or a name.

    `head` is the head that VGG's fully connected layers of ImageNet are thinned to.
    """
    found = names.resolve(path)
    if found.is_dir():
        return _read_run(found)
    given, meta = sources.read(found, head=head)
    named = names.of_file(found)
    if named and (found != path or found.parent == names.cache_folder()):
        names.check_structure(named, meta)
    if named and len(named.class_names) == len(meta["class_names"]):
        meta["class_names"] = named.class_names
    return given, meta


def network(
    fields: Mapping[str, Any],
    num_classes: int,
    *,
    model_file: str | None = None,
    remat: bool = False,
) -> DeepLabV2:
    """The network of the fields of ModelConfig, or the one that the function in `model_file` makes.

    Raises:
      UserError: the fields contradict each other, or the file does not give a network.
    """
    if model_file is None:
        return deeplab.build(num_classes, **fields, remat=remat)
    path, _, name = model_file.rpartition(":")
    function = getattr(_module(Path(path), model_file), name, None)
    if not callable(function):
        raise UserError(f"{path} has no function {name!r}; give --model-file FILE.py:FUNCTION")
    made = function(num_classes)
    if not isinstance(made, DeepLabV2):
        raise UserError(
            f"{name} of {path} gives a {type(made).__name__}, and a DeepLabV2 was expected, which "
            "may have a trunk or head of your own"
        )
    if made.num_classes != num_classes:
        raise UserError(
            f"the network that {name} of {path} gives has {made.num_classes} classes, and "
            f"{num_classes} were asked for"
        )
    return made


def _module(path: Path, model_file: str) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"there is no file {path}, which {model_file} names; give --model-file "
            "FILE.py:FUNCTION, or put the file back in its place"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # every .py file has them
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained_network(config: Config, num_classes: int) -> DeepLabV2 | crf_layer.WithCRF:
    """What the updates of a run train: the network, with the CRF that ends it where there is one.

    It rematerialises where the run asks for it.
    """
    trained = network(
        asdict(config.model), num_classes, model_file=config.model_file, remat=config.remat
    )
    if config.crf_iterations:
        return crf_layer.WithCRF(trained, config.crf_iterations, crf_bands(config))
    return trained


def _blank(shapes):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _read_run(workdir: Path, *, average: bool = False) -> tuple[files.Flat, dict[str, Any]]:
    """The newest whole checkpoint as NumPy arrays, whatever devices it was saved from.

    With `average` its parameters are the averaged ones of the optimizer's state. Read beside a run
    that may be going on: nothing is put aside or cleaned up.
    """
    config, class_names = read_config(workdir)
    folder = workdir / CHECKPOINTS
    step, wrong = checkpoints.newest_good(folder)
    for other, why in wrong.items():
        print(f"warning: checkpoint {folder / str(other)} {why}; it is not used", file=sys.stderr)
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet; train first")
    model = trained_network(config, len(class_names))
    shapes = train.variable_shapes(model)
    found = checkpoints.read(folder, step, "model", {"batch_stats": {}, **shapes})
    if average:
        found["params"] = _read_average(workdir, step, config, shapes)
    learnt = found["params"].pop("crf", None)
    meta = {
        "model": asdict(config.model),
        "model_file": config.model_file,
        "crf": learnt and {name: float(weight) for name, weight in learnt.items()},
        "class_names": class_names,
        "class_colors": _read_record(workdir).get("class_colors"),
        "channel_order": "BGR" if len(config.model.mean_bgr) == 3 else "as in the files",
        "source": {
            "file": str(workdir),
            "sha256": sources.sha256(folder / str(step) / checkpoints.MANIFEST),
            "convention": "deeplab_jax run",
            "trained_on": config.data.train_split,
        },
        "step": step,
    }
    if config.data.channels is not None:
        meta["bands"] = describe_bands(config)
    return files.flatten(found), meta


def _read_average(workdir: Path, step: int, config: Config, shapes: dict) -> dict:
    """The averaged parameters that a step holds."""
    if not config.ema_decay:
        raise UserError(
            f"{workdir} holds no averaged parameters: it was trained without --ema-decay; leave "
            "out the option for the average"
        )
    _, optimizer = solver_of(config)
    state = jax.eval_shape(lambda variables: train.init_state(variables, optimizer), shapes)
    rest = checkpoints.read(workdir / CHECKPOINTS, step, "optimizer", _items(state)["optimizer"])
    average = optim.average_of(rest["optimizer"])
    assert average is not None  # an ema_decay makes the optimizer `averaged`
    return average


def solver_of(config: Config) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule of the learning rate and the optimizer of a run."""
    return optim.solver(config.num_steps, **asdict(config.optim), ema_decay=config.ema_decay)


def make_step(
    config: Config,
    trained: DeepLabV2 | crf_layer.WithCRF,
    optimizer: optax.GradientTransformation,
    *,
    class_weights: Float[np.ndarray, " c"] | None = None,
    axis_name: str | None = train.AXIS,
    check_finite: bool = True,
) -> train.Step:
    """The update of a run for one device, by its losses; the arguments are those of
    train.make_step.

    `trained` is what `trained_network` gives, and `class_weights` weigh the pixels of each class
    (losses.balanced_weights).
    """
    pixel_loss = losses.focal if config.pixel_loss == "focal" else losses.cross_entropy
    dense_crf = partial(
        losses.dense_crf, alignment=config.model.alignment, **asdict(config.crf_loss)
    )
    batch_losses = {None: None, "dice": losses.dice, "lovasz": losses.lovasz_softmax}
    batch_losses["dense_crf"] = dense_crf
    return train.make_step(
        trained,
        optimizer,
        seed=config.seed,
        batch_size=config.batch_size,
        group_size=configs.group_size(config),
        axis_name=axis_name,
        exact_padding=config.data.exact_padding,
        check_finite=check_finite,
        pixel_loss=partial(pixel_loss, class_weights=class_weights),
        batch_loss=batch_losses[config.batch_loss],
    )


def _write_whole(path: Path, text: str) -> None:
    """The file has its old content or all of the new one, whenever the process ends."""
    with writing(path), storage.written_whole(path) as partial:
        partial.write_text(text)


if not TYPE_CHECKING:  # an editor is to mark the old names
    __getattr__ = answering(__name__, {}, {"data_root": "find_root of experiments/splits.py"})
