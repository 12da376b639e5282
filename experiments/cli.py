"""What every script does: parse its options, and report a user's mistake in one sentence.

Exit status: 0 when all is done, 2 after a mistake or a full disk, 75 after Ctrl-C or SIGTERM.
"""

import difflib
import errno
import importlib.util
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

HERE = Path(__file__).resolve().parent

if sys.platform == "win32":
    sys.exit("error: deeplab_jax runs on Linux and macOS; on Windows, start it in WSL")
if missing := [n for n in ("deeplab_jax", "tyro", "jax") if importlib.util.find_spec(n) is None]:
    sys.exit(
        f"error: {missing[0]} is not installed for {sys.executable}; type "
        f"{os.path.basename(sys.executable)} -m pip install -e {os.path.relpath(HERE.parent)}"
    )
if Path(sys.argv[0]).resolve().parent == HERE:  # a script of ours, whose imports take seconds
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(75))

import jax
import tyro
from tqdm import tqdm

from deeplab_jax import compilation, crf, evaluation, interruption, segmenter, start, storage
from deeplab_jax.choices import CRFNormalization
from deeplab_jax.config import Config
from deeplab_jax.crf import refinement
from deeplab_jax.data import builders
from deeplab_jax.types import UserError

C = TypeVar("C")
T = TypeVar("T")

SECONDS_A_LINE = 30
"""Of long work, where there is no terminal."""


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's banners; its errors stay


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """Options of `crf.refine` that several scripts have."""

    crf_normalization: CRFNormalization = "symmetric"
    """symmetric, as pydensecrf, or per_pixel, as the authors and the published rows."""
    crf_max_pixels: int | None = None
    """Refine photographs with more pixels at a smaller scale, which saves memory and time."""
    crf_prune_below: float | None = None
    """Leave labels that are less probable at every pixel out of the CRF's messages, which saves
    time: 0.01, say."""
    crf_bands: tuple[int, ...] | None = None
    """Channels that the CRF compares in place of colours, counted from 0, 1 to 6 of them; as the
    run says where none are given."""

    def refining(self, bands: tuple[int, ...] | None) -> Callable[..., Any]:
        """`crf.refine` with these options; `bands` are those of the run."""
        if refinement.host_of_tpu() is not None:
            print("the CRF runs on the host's CPU, which is expected to take less time than a TPU")
        return partial(
            crf.refine,
            normalization=self.crf_normalization,
            max_pixels=self.crf_max_pixels,
            prune_below=self.crf_prune_below,
            bands=self.crf_bands or bands,
        )


@dataclass(frozen=True, kw_only=True)
class ScoringOptions(RefineOptions):
    """Options of scripts that run a network on a data set."""

    scales: tuple[float, ...] | None = None
    """Average the probabilities of the network run at these sizes; as the run is scored where none
    is given."""
    flip: bool = False
    """Average with the flipped photograph."""
    root: Path | None = None
    """Data set; that of the run where none is given."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""

    def inference(self, config: Config) -> evaluation.InferenceOptions:
        """These options, and for all others those that the run is scored with."""
        of_run = evaluation.InferenceOptions(**asdict(config.eval), flip=self.flip)
        return replace(of_run, scales=self.scales or of_run.scales)

    def open_split(self, config: Config, split: str, names: tuple[str, ...]) -> builders.Source:
        """A split of the data set; a UserError where its classes have other names."""
        where = {"root": self.root, "prepared_dir": self.prepared_dir}
        return start.open_split(config, split, **where, class_names=names)


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options of scripts that load a trained network."""

    checkpoint: segmenter.Checkpoint = "newest"
    """Of a work folder: newest, best (by its score on the val split), or the number of an
    update."""
    average: bool = False
    """The averaged parameters of a run that was trained with --ema-decay."""

    def load(self, source: Path) -> tuple[segmenter.Segmenter, Config]:
        """The network, and the options of its run."""
        found = segmenter.load(source, average=self.average, checkpoint=self.checkpoint)
        return found, segmenter.config_of(source, found.meta)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(ScoringOptions, SourceOptions):
    """Options of scripts that run a trained network."""

    tile: int | None = None
    """Photographs that a square of this side does not cover are cut into such tiles, which overlap
    by a quarter. None: predict.py cuts above a million pixels, and evaluate_voc.py as the run is
    scored."""
    crf: bool = False
    """Refine with the fully connected CRF too."""
    crf_params: str | None = None
    """File that search_crf.py left, or the name of a published set of parameters; where none is
    given, what the run learnt (--crf-iterations), else the set published for its network."""

    def inference(self, config: Config) -> evaluation.InferenceOptions:
        of_run = super().inference(config)
        return replace(of_run, tile=self.tile or of_run.tile)

    def refine(self, found: segmenter.Segmenter, config: Config) -> evaluation.Refine | None:
        """What refines a photograph's probabilities, where that is asked for."""
        if not self.crf:
            return None
        learnt, model = found.meta.get("crf"), found.meta["model"]
        params = crf.choose_params(self.crf_params, learnt=learnt, model=model)
        return partial(self.refining(segmenter.crf_bands(config)), params=params)


def parse(kind: type[C], description: str, **more: Any) -> C:
    """The options of a script."""
    sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
    return tyro.cli(kind, description=description, config=(tyro.conf.AvoidSubcommands,), **more)


def parse_preset(presets: Mapping[str, Config], default: str, description: str) -> start.Request:
    """The preset named by the first argument, its fields changed by the options after it.

    The work folder is runs/<preset> where none is given.
    """
    arguments = sys.argv[1:]  # the name is the first word but for --help, and may be left out
    named = [word for word in arguments if word not in ("-h", "--help")][:1]
    name = named[0] if named and not named[0].startswith("-") else default
    if name != default or named == [default]:
        arguments.remove(name)
    if name not in presets:
        fail(no_preset(name, presets))
    told = f"{description}\n\nPresets: {', '.join(presets)}. These are the options of {name}."
    config = parse(Config, told, default=presets[name], args=arguments)
    config = replace(config, workdir=config.workdir or Path("runs") / name)
    return start.Request(config, name, shlex.join(["python", *sys.argv]))


def no_preset(name: str, presets: Iterable[str]) -> str:
    """The mistake in a name, and the nearest that there is."""
    near = difflib.get_close_matches(name, presets, n=1, cutoff=0.0)[0]
    return f"there is no preset {name}; did you mean {near}?"


def check_positive(**counts: int | None) -> None:
    """Refuses a count below 1, by its option's name."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {count}")


def progress(
    items: Iterable[T], total: int | None = None, *, what: str, unit: str = "photographs"
) -> Iterator[T]:
    """The items, with a bar on a terminal and else, as in a log file, a line twice a minute."""
    total = len(items) if total is None else total
    if sys.stderr.isatty():
        style = {"unit": f" {unit}", "leave": False, "dynamic_ncols": True}
        yield from tqdm(items, desc=what, total=total, **style)
        return
    told = time.monotonic()
    for done, item in enumerate(items, 1):
        if time.monotonic() - told > SECONDS_A_LINE:
            print(f"{what}: {done - 1} of {total} {unit}", file=sys.stderr, flush=True)
            told = time.monotonic()
        yield item


def run(main: Callable[[C], None], config: C) -> None:
    """Calls `main`; a mistake of the user's, or a full disk, ends with a sentence and status 2."""
    compilation.enable_compilation_cache()
    compilation.release_compiler_memory()
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors come as exceptions
    try:
        with interruption.watch():  # train_voc.py watches anew once JAX's processes have met
            main(config)
    except UserError as error:
        fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        if not jax.distributed.is_initialized():
            raise
        first_line = str(error).splitlines()[0]
        fail(f"the processes lost each other ({first_line}); start all of them again to go on")
    except (RuntimeError, AssertionError):  # JAX's, for CUDA without a card, is the latter
        try:
            jax.devices()
        except (RuntimeError, AssertionError):
            named = jax.config.jax_platforms or "not set"
            fail(
                f"JAX can start no device: JAX_PLATFORMS is {named}; leave that variable out to "
                "let JAX choose, or give cpu, or install JAX for this accelerator"
            )
        raise
    except OSError as error:
        if error.errno not in storage.FULL:
            raise
        fail(
            f"a file could not be written: {error.strerror}; make room, and type the command again"
        )


class Output:
    """A stream whose reader may end: `| head`, Ctrl-C to `| tee`, a closed terminal. Later output
    is dropped, and the work goes on until its results are complete."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        return self._or_drop(self.stream.write, text) or len(text)

    def flush(self) -> None:
        self._or_drop(self.stream.flush)

    def _or_drop(self, call: Callable, *arguments: str) -> int | None:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    if jax.distributed.is_initialized():
        os._exit(2)  # a normal exit would wait for the other processes, which wait for this one
    sys.exit(2)
