"""Progress bar, metrics.jsonl and TensorBoard, an update late so that none waits for it."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from deeplab_jax import runs


class Curves:
    """TensorBoard's file of events, of updates from `start` + 1 on: older ones are replaced.

    SummaryWriter hands events to a thread, which dies on a full disk, and then waits for it for
    ever; here the error is raised.
    """

    def __init__(self, folder: Path, *, start: int):
        folder.mkdir(exist_ok=True)
        self.file = EventsWriter(str(folder / "events"))
        again = start + 1
        self._write(Event(step=again, file_version="brain.Event:2"))
        self._write(Event(step=again, session_log=SessionLog(status=SessionLog.START)))

    def add(self, number: int, *summaries: Any) -> None:
        """Adds what tensorboardX.summary gives; it is on disk when this returns."""
        for entry in summaries:
            self._write(Event(step=number, summary=entry))
        self.file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told when it was added
            self.file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.file.write_event(event)


class Progress:
    """What a run tells of itself while it goes on; nothing where `workdir` is None.

    `rate(number)` is the learning rate of update `number`, counted from 1.
    """

    def __init__(
        self,
        workdir: Path | None,
        *,
        start: int,
        num_steps: int,
        batch_size: int,
        log_every: int,
        rate: Callable[[int], float],
    ):
        self.workdir, self.num_steps, self.batch_size = workdir, num_steps, batch_size
        self.log_every, self.rate = log_every, rate
        self.curves = _begin(workdir, start) if workdir else None
        self.bar = tqdm(
            total=num_steps,
            initial=start,
            unit="update",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=workdir is None,
        )
        self.last: tuple[int, Mapping[str, jax.Array], float | None] | None = None
        self.since = (start, time.monotonic())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.flush()
        self.bar.close()
        if self.curves:
            self.curves.close()

    def _draw(self, workdir: Path, number: int, *summaries: Any) -> None:
        if self.curves is not None:
            with runs.writing(workdir / "tensorboard"):
                self.curves.add(number, *summaries)

    def step(self, number: int, values: Mapping[str, jax.Array]) -> dict[str, float | int] | None:
        """Logs the update before this one, when it is done, and gives its values."""
        logged = self.flush()
        done = all(value.is_ready() for value in values.values())
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
        if values["skipped_in_a_row"] and self.workdir:
            self.bar.write(f"update {number} is not finite and skipped; {values['skipped']} so far")
        if self.workdir and (number % self.log_every == 0 or number == self.num_steps):
            self._log(self.workdir, number, values, done)
        return {"number": number, **values}

    def _log(
        self, workdir: Path, number: int, values: Mapping[str, float | int], done: float
    ) -> None:
        before, then = self.since
        self.since = (number, done)
        images = (number - before) * self.batch_size
        record = {
            "step": number,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
            "learning_rate": float(self.rate(number)),
            "images_per_second": images / (done - then),
        }
        runs.append_metrics(workdir, record)
        known = {name: value for name, value in record.items() if value is not None}
        self._draw(workdir, number, *(summary.scalar(name, value) for name, value in known.items()))
        self.bar.set_postfix(
            loss=f"{values['loss']:.3f}", images_per_s=f"{record['images_per_second']:.1f}"
        )

    def score(self, number: int, results: Mapping[str, Any], picture: np.ndarray | None) -> None:
        """A score on the val split, and photographs beside truth and prediction."""
        self.flush()
        if self.workdir is None:
            return
        if not runs.is_scored(self.workdir, number):
            runs.append_metrics(self.workdir, {"step": number, **results})
        self._draw(self.workdir, number, summary.scalar("mean_iou", results["mean_iou"]))
        if picture is not None:
            self._draw(self.workdir, number, summary.image("val", picture, dataformats="HWC"))
        self.bar.write(f"update {number}: mean IoU {results['mean_iou']:.4f}")
        self.since = (number, time.monotonic())


def _begin(workdir: Path, start: int) -> Curves:
    with runs.writing(workdir):
        return Curves(workdir / "tensorboard", start=start)
