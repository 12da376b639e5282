"""Progress bar and loggers, one update late, so that no update waits for them.

A run logs to metrics.jsonl and TensorBoard, and to the loggers that a caller adds. A terminal shows
a bar; where there is none, such as in a log file, each logged update is a plain line.
"""

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tqdm import tqdm

from deeplab_jax import storage, workdir

EVENTS: Any = event_pb2  # protobuf makes its classes at import


@runtime_checkable
class Logger(Protocol):
    """Where the scalars and pictures of a run go.

    `step` counts the updates done and never decreases. What a method raises ends the run; the
    Stopped of interruption.py does so as a signal does, with a sentence.
    """

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Values of an update (`loss`, `learning_rate`, ...) or of a score (`mean_iou`, ...).

        They may be NaN or infinite.
        """

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """An RGB picture."""

    def close(self) -> None:
        """Called once, when the run ends or fails."""


class Curves:
    """A Logger: TensorBoard's file of events, of updates from `start` + 1 on, which replaces
    older ones. NaN and infinite values are left out.

    Values of updates are under `train/`, those of a score and its picture under `val/`, and
    `options` are a table under the tab of texts.

    SummaryWriter hands events to a thread, which dies on a full disk, and then waits for it for
    ever; here the error is raised.
    """

    def __init__(self, folder: Path, start: int, options: Mapping[str, Any] | None):
        self.folder, again = folder, start + 1
        with storage.writing(folder):
            folder.mkdir(exist_ok=True)
            self.file = EventsWriter(str(folder / "events"))
            self._write(again, file_version="brain.Event:2")
            self._write(again, session_log=EVENTS.SessionLog(status=EVENTS.SessionLog.START))
        if options:
            lines = [("option", "value"), ("---", "---"), *options.items()]
            cells = ((name, str(value).replace("|", r"\|")) for name, value in lines)
            table = "\n".join(f"| {name} | {value} |" for name, value in cells)
            self._add(start, summary.text("options", table))

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        known = {name: value for name, value in values.items() if math.isfinite(value)}
        group = "val" if "mean_iou" in values else "train"
        self._add(step, *(summary.scalar(f"{group}/{name}", v) for name, v in known.items()))

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        self._add(step, summary.image(f"{name}/photographs", image, dataformats="HWC"))

    def _add(self, step: int, *summaries: Any) -> None:
        """Adds what tensorboardX.summary gives; it is on disk when this returns."""
        with storage.writing(self.folder):
            for entry in summaries:
                self._write(step, summary=entry)
            self.file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # reported when it was added
            self.file.close()

    def _write(self, step: int, **content: Any) -> None:
        self.file.write_event(EVENTS.Event(step=step, wall_time=time.time(), **content))


class Progress:
    """Shows and logs the progress of a run; does nothing where the work `folder` is None.

    `rate(number)` is the learning rate of update `number`, counted from 1. `loggers` get the same
    values as metrics.jsonl and TensorBoard, after them, and are closed in the end. `options` are
    shown by TensorBoard.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        start: int,
        num_steps: int,
        batch_size: int,
        log_every: int,
        rate: Callable[[int], float],
        loggers: Sequence[Logger] = (),
        options: Mapping[str, Any] | None = None,
    ):
        self.folder, self.num_steps, self.batch_size = folder, num_steps, batch_size
        self.log_every, self.rate = log_every, rate
        self.loggers: list[Logger] = []
        if folder:
            self.loggers = [Curves(folder / "tensorboard", start, options), *loggers]
        self.bar = tqdm(
            total=num_steps,
            initial=start,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} updates{postfix}",
            dynamic_ncols=True,
            disable=None if folder else True,  # None: where there is no terminal
        )
        self.last: tuple[int, Mapping[str, jax.Array], float | None] | None = None
        self.since = (start, time.monotonic())
        self.compiled = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.ExitStack() as closing:  # all of them, whatever one raises
            for logger in self.loggers:
                closing.callback(logger.close)
            closing.callback(self.bar.close)
            self.flush()

    def say(self, text: str) -> None:
        """A line, above the bar where there is one."""
        if self.folder:
            tqdm.write(text)
            sys.stdout.flush()

    def begin(self) -> None:
        """Says that the first update is being compiled."""
        if self.folder and self.since[0] < self.num_steps:
            self.since = (self.since[0], time.monotonic())
            self.say("compiling the update (about a minute, once)")

    def step(self, number: int, values: Mapping[str, jax.Array]) -> dict[str, float | int] | None:
        """Logs the update before this one, when it is done, and gives its values."""
        logged = self.flush()
        done = all(cast(Any, value).is_ready() for value in values.values())  # not in its type
        self.last = (number, values, time.monotonic() if done else None)
        self.bar.update()
        return logged

    def flush(self) -> dict[str, float | int] | None:
        """Logs the newest update, when it is done, and gives its values."""
        if self.last is None:
            return None
        number, arrays, done = self.last
        self.last = None
        values = {name: np.asarray(value).item() for name, value in arrays.items()}
        done = done or time.monotonic()
        if values["skipped_in_a_row"] and self.folder:
            self.say(f"update {number} is not finite and skipped; {values['skipped']} so far")
        self._log(number, values, done)
        return {"number": number, **values}

    def _log(self, number: int, values: Mapping[str, float | int], done: float) -> None:
        if self.folder is None or number % self.log_every and number != self.num_steps:
            return
        before, then = self.since
        self.since = (number, done)
        speed = (number - before) * self.batch_size / (done - then)
        rate = float(self.rate(number))
        logged = {**values, "learning_rate": rate, "images_per_second": speed}
        workdir.append_metrics(self.folder, {"step": number, **logged})
        for logger in self.loggers:
            logger.scalars(number, logged)
        shown = f"loss {values['loss']:.3f}, {speed:.1f} images/s"
        if self.compiled:
            left = round((self.num_steps - number) * self.batch_size / speed)
            shown += f", {datetime.timedelta(seconds=left)} left"
        self.compiled = True
        if self.bar.disable:
            self.say(f"update {number} of {self.num_steps}: {shown}")
        else:
            self.bar.set_postfix_str(shown)

    def score(self, number: int, results: Mapping[str, Any], picture: np.ndarray | None) -> None:
        """A score on the val split, and photographs beside truth and prediction."""
        self.flush()
        if self.folder is None:
            return
        if picture is not None:
            for logger in self.loggers:
                logger.picture(number, "val", picture)
        self.say(f"update {number}: mean IoU {results['mean_iou']:.4f}")
        self.since = (number, time.monotonic())
        if not workdir.is_scored(self.folder, number):
            workdir.append_metrics(self.folder, {"step": number, **results})
        for logger in self.loggers:  # last, as one may end the run here
            logger.scalars(number, results)
