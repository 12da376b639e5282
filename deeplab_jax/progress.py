"""Progress bar, metrics.jsonl and TensorBoard, an update late so that none waits for it."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from deeplab_jax import runs


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
        # Curves of updates that are done again replace the first ones.
        folder, again = str(workdir and workdir / "tensorboard"), start + 1
        self.writer = SummaryWriter(folder, purge_step=again) if workdir else None
        self.bar = tqdm(
            total=num_steps,
            initial=start,
            unit="update",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=workdir is None,
        )
        self.last: tuple[int, Mapping[str, jax.Array]] | None = None
        self.since = (start, time.monotonic())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.flush()
        self.bar.close()
        if self.writer:
            self.writer.close()

    def step(self, number: int, values: Mapping[str, jax.Array]) -> dict[str, float | int] | None:
        """Logs the update before this one, when it is done, and gives its values."""
        logged = self.flush()
        self.last = (number, values)
        self.bar.update()
        return logged

    def flush(self) -> dict[str, float | int] | None:
        """Logs the newest update, when it is done, and gives its values."""
        if self.last is None:
            return None
        number, arrays = self.last
        self.last = None
        values = {name: np.asarray(value).item() for name, value in arrays.items()}
        if values["skipped_in_a_row"] and self.workdir:
            self.bar.write(f"update {number} is not finite and skipped; {values['skipped']} so far")
        if self.workdir and (number % self.log_every == 0 or number == self.num_steps):
            self._log(number, values)
        return {"number": number, **values}

    def _log(self, number: int, values: Mapping[str, float | int]) -> None:
        before, then = self.since
        self.since = (number, time.monotonic())
        images = (number - before) * self.batch_size
        record = {
            "step": number,
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
            "learning_rate": float(self.rate(number)),
            "images_per_second": images / (self.since[1] - then),
        }
        runs.append_metrics(self.workdir, record)
        for name, value in record.items():
            if value is not None:
                self.writer.add_scalar(name, value, number)
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
        self.writer.add_scalar("mean_iou", results["mean_iou"], number)
        if picture is not None:
            self.writer.add_image("val", picture, number, dataformats="HWC")
        self.bar.write(f"update {number}: mean IoU {results['mean_iou']:.4f}")
        self.since = (number, time.monotonic())
