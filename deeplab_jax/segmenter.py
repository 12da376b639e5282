"""A network with its weights and classes: how it is built, found and used."""

import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Shaped, UInt8

from deeplab_jax import checkpoints, evaluation, optim, train, visualization, workdir
from deeplab_jax.config import Config, ModelConfig, as_tuple
from deeplab_jax.data import images
from deeplab_jax.data.loader import Augment
from deeplab_jax.evaluation import InferenceOptions
from deeplab_jax.models import crf_layer, deeplab
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import Array, Probs, UserError
from deeplab_jax.weights import branches, files, formats, names, shared, sources

Checkpoint = int | Literal["newest", "best"]
"""Number of an update, or the newest or the best-scored checkpoint of a run."""

BANDS = ("channels", "range", "shown_bands")
"""Fields of the data that say what a network's channels are."""


class Segmenter(NamedTuple):
    """A network with its weights and classes; `model, variables, meta = segmenter` unpacks it."""

    model: DeepLabV2
    variables: Mapping[str, Any]
    """`params` and, where there is batch norm, `batch_stats`."""
    meta: Mapping[str, Any]
    """`class_names`, `model` with the fields of the network, where the weights come from, and `crf`
    with the kernels' weights where a CRF was trained with them."""

    def __repr__(self) -> str:
        number = sum(leaf.size for leaf in jax.tree.leaves(self.variables))
        source = self.meta.get("source", {}).get("file", "?")
        return f"Segmenter of {source}: {len(self.class_names)} classes, {number:,} numbers"

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
        told = self.meta.get("bands") or {}
        if told and isinstance(image, np.ndarray | jax.Array):
            channels, value_range = told["data.channels"], told["data.range"]
            if channels == 1 and image.ndim == 2:
                image = image[..., None]
            if value_range and image.dtype != np.uint8 and image.shape[2:] == (channels,):
                image = images.to_8_bits(np.asarray(image), value_range)
        # What does not fit is refused there.
        return evaluation.predict(self.model, self.variables, image, options, **changes)

    def save(self, folder: Path | str, card: shared.Card | None = None) -> None:
        """Writes the weights, what they are, and a model card into a folder that `load` reads.

        `card` says what others want to know: data, split, score, command, licence.
        """
        shared.write(Path(folder), files.flatten(self.variables), self.meta, card or shared.Card())

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.meta["class_names"])

    @property
    def palette(self) -> UInt8[np.ndarray, "c 3"]:
        """An RGB colour of each class, as in the pictures."""
        colors = visualization.palette(self.class_names, self.meta.get("class_colors"))
        return colors[: len(self.class_names)]


def load(
    path: Path | str,
    *,
    average: bool = False,
    checkpoint: Checkpoint = "newest",
    model_file: str | None = None,
) -> Segmenter:
    """The network of a work folder, a weight file, or a name of published weights such as "voc12".

    The names are those of weights.names; their files are downloaded once. Of a work folder
    `checkpoint` is read, and `average` takes the averaged parameters of a run with --ema-decay.
    `model_file` is the FILE.py:FUNCTION that a network of your own is built by. A work folder names
    its own; a weight file may come from elsewhere, and what it names is not run unless it is given
    here. Where there is nothing to load, or it does not fit the network, that is a UserError.
    """
    source = Path(path)
    given, meta = read_weights(source, average=average, checkpoint=checkpoint)
    if not meta["class_names"]:
        raise UserError(f"{path} has no trained last layer: train it first, with --weights {path}")
    named = meta.get("model_file")
    if named and model_file is None and not is_run(source):
        raise UserError(
            f"the network of {path} is built by {named}, which is not run because a file says so; "
            "give it as model_file=..., if it is your own"
        )
    model = network(meta["model"], len(meta["class_names"]), model_file=model_file or named)
    return Segmenter(model, files.fill(train.variable_shapes(model), given), meta)


def read_weights(
    path: Path,
    *,
    answers: sources.Answers = sources.NO_ANSWERS,
    average: bool = False,
    checkpoint: Checkpoint = "newest",
) -> tuple[files.Flat, files.Header]:
    """Arrays by name and `meta`, as in `load`, of a work folder, any weight file, or a name.

    `answers` say what a file leaves open.
    """
    if is_run(path):
        given, meta = _read_run(path, checkpoint, average=average)
    elif average or checkpoint != "newest":
        raise UserError(
            f"{path} is no work folder, and only a run has checkpoints and averaged parameters; "
            "leave out the options for them"
        )
    else:
        given, meta = names.read(path, answers=answers)
    return branches.choose(given, meta, answers.branches, fresh_head=answers.fresh_head)


def is_run(path: Path) -> bool:
    """Whether a run left the folder `path`."""
    return (path / "config.json").is_file() and not shared.is_shared(path)


def network(
    options: Mapping[str, Any],
    num_classes: int,
    *,
    model_file: str | None = None,
    remat: bool = False,
) -> DeepLabV2:
    """The network of the fields of ModelConfig, or the one that the function in `model_file` makes;
    a UserError where the fields contradict each other, or the file does not give a network."""
    if model_file is None:
        names_known = (f.name for f in fields(ModelConfig) if f.name in options)
        known: dict[str, Any] = {name: as_tuple(options[name]) for name in names_known}
        return deeplab.build(num_classes, **known, remat=remat)
    path, _, name = model_file.rpartition(":")
    function = own_function(model_file, name)
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


def own_function(model_file: str | None, name: str) -> Callable[..., Any] | None:
    """What is called `name` in the file of a network of your own; None where there is none.

    Raises:
      UserError: the file is not there.
    """
    if model_file is None:
        return None
    path = Path(model_file.rpartition(":")[0])
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"there is no file {path}, which {model_file} names; give --model-file "
            "FILE.py:FUNCTION, or put the file back in its place"
        )
    return runpy.run_path(str(path)).get(name)


def own_augment(model_file: str | None) -> Augment | None:
    """The function `augment` of such a file, which may be sent to another process."""
    if model_file is None or own_function(model_file, "augment") is None:
        return None
    return partial(_augment, model_file)


def _augment(model_file: str, *photograph: Any) -> Any:
    return _kept_function(model_file, "augment")(*photograph)


_kept_function: Any = cache(own_function)


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


def solver_of(config: Config) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule of the learning rate and the optimizer of a run, which may be your own."""
    own = own_function(config.model_file, "make_optimizer")
    options = {**asdict(config.optim), "ema_decay": config.ema_decay, "make_optimizer": own}
    return optim.solver(config.num_steps, **options)


def shown_bands(config: Config) -> tuple[int, ...] | None:
    """The channels that pictures show as colours; None where photographs are RGB."""
    if config.data.channels is None:
        return None
    return config.data.shown_bands or visualization.default_bands(config.data.channels)


def crf_bands(config: Config) -> tuple[int, ...] | None:
    """The channels that the CRF compares; None where photographs are RGB."""
    return config.crf_bands or shown_bands(config)


def config_of(source: Path, meta: Mapping[str, Any]) -> Config:
    """The options of the run in a work folder; the paper's for a weight file, with the channels
    that its header `meta` tells of."""
    if is_run(source):
        return workdir.read_run(source).config
    config, told = Config(), meta.get("bands")
    if not told:
        return config
    data = replace(config.data, **{name: as_tuple(told[f"data.{name}"]) for name in BANDS})
    return replace(config, data=data, crf_bands=as_tuple(told["crf_bands"]))


def _read_run(
    folder: Path, checkpoint: Checkpoint, *, average: bool
) -> tuple[files.Flat, files.Header]:
    """NumPy arrays of a checkpoint, whatever devices they were saved from, and what they are.

    With `average` the parameters are the averaged ones of the optimizer's state. The run may be
    going on: nothing is put aside or cleaned up.
    """
    run, steps = workdir.read_run(folder), folder / workdir.CHECKPOINTS
    config, step = run.config, _chosen_step(folder, checkpoint)
    if average and not config.ema_decay:
        raise UserError(
            f"{folder} holds no averaged parameters: it was trained without --ema-decay; "
            "leave out the option for the average"
        )
    _, optimizer = solver_of(config)
    trained = trained_network(config, len(run.class_names))
    like = workdir.items(train.state_shapes(trained, optimizer))
    found = checkpoints.read(steps, step, "model", like["model"])
    if average:
        rest = checkpoints.read(steps, step, "optimizer", like["optimizer"])
        found["params"] = optim.average_of(rest["optimizer"])
    learnt = found["params"].pop("crf", None)
    meta = {
        "model": asdict(config.model),
        "model_file": config.model_file,
        "crf": learnt and {name: float(weight) for name, weight in learnt.items()},
        "class_names": run.class_names,
        "class_colors": run.record.get("class_colors"),
        "channel_order": "BGR" if config.data.channels in (None, 3) else "as in the files",
        "source": {
            "file": str(folder),
            "sha256": formats.sha256(steps / str(step) / checkpoints.MANIFEST),
            "convention": "deeplab_jax run",
            "trained_on": config.data.train_split,
        },
        "step": step,
    }
    if config.data.channels is not None:
        of_data = {f"data.{name}": getattr(config.data, name) for name in BANDS}
        meta["bands"] = {**of_data, "crf_bands": config.crf_bands}
    return files.flatten(found), meta


def _chosen_step(folder: Path, checkpoint: Checkpoint) -> int:
    """The update whose checkpoint is read; a UserError where it is missing or damaged."""
    steps = folder / workdir.CHECKPOINTS
    if checkpoint == "newest":
        step, wrong = checkpoints.newest_good(steps)
        for other, why in wrong.items():
            told = f"warning: checkpoint {steps / str(other)} {why}; it is not used"
            print(told, file=sys.stderr)
        if step is None:
            raise UserError(f"{folder} holds no checkpoint yet; train first")
        return step
    step = workdir.best_step(folder) if checkpoint == "best" else checkpoint
    if step is None:
        raise UserError(f"{folder} has no score yet, by which a checkpoint could be the best")
    kept = checkpoints.steps(steps)
    if step not in kept:
        raise UserError(
            f"{folder} holds no checkpoint of update {step}, it has those of updates "
            f"{', '.join(map(str, kept)) or 'none'}; --keep-checkpoints says how many are kept"
        )
    if why := checkpoints.fault(steps, step):
        raise UserError(f"checkpoint {steps / str(step)} {why}; choose another with --checkpoint")
    return step
