"""Time updates that read their photographs against updates on one batch in memory.

    python experiments/benchmarks/step_with_loader.py data/voc2012_animals
    python experiments/benchmarks/step_with_loader.py VOCdevkit --preset resnet101_aspp_msc \\
        --split train_aug --trace profile

Both run by turns in this process, on all devices, each update waited for on CPUs as train_voc.py
does. A ratio of 1 says that reading costs the training nothing. On CPUs reading and computing share
the cores, so that the CPU time of reading is the least it can cost; other work on the machine shows
in the spread. On accelerators `--trace` leaves a profile, in which the device's idle time is seen
in TensorBoard or Perfetto.

Wanted: at most 1.10 with the preset small on two CPU cores.
"""

import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
import tyro

from deeplab_jax import runs, train
from deeplab_jax.data import builders, loader
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import Batch

STOCK = 4
"""Updates before each measurement, which use up what was decoded in the meantime."""


@dataclass(frozen=True)
class Args:
    root: tyro.conf.Positional[Path]
    """Data set."""
    preset: str = "small"
    split: str | None = None
    """List to train on; the preset's where none is given."""
    batch_size: int | None = None
    """Photographs an update; the preset's where none is given."""
    updates: int = 10
    """Updates of each kind in a round."""
    rounds: int = 7
    """Rounds, whose median is printed."""
    workers: int = 0
    """Processes that decode; 0: threads of this one."""
    prepared_dir: Path = Path("prepared")
    trace: Path | None = None
    """Folder for a profile of updates that read."""


class Training:
    """A run of a preset from scratch, update after update."""

    def __init__(self, args: Args):
        config = PRESETS[args.preset]
        if args.batch_size is not None:
            config = replace(config, batch_size=args.batch_size)
        devices = jax.local_devices()
        split = args.split or config.data.train_split or "train"
        dataset = builders.open_dataset(args.root, prepared_dir=args.prepared_dir, splits=[split])
        model = runs.trained_network(config, len(dataset.class_names))
        _, optimizer = runs.solver_of(config)
        self.step = train.on_devices(runs.make_step(config, model, optimizer), devices)
        variables = train.init_variables(model, jax.random.key(0))
        self.state = train.replicate(train.init_state(variables, optimizer), devices)
        self.batches = loader.batches(
            dataset.splits[split],
            seed=0,
            start=0,
            stop=10**6,
            batch_size=config.batch_size,
            crop_size=config.data.crop_size,
            scales=config.data.augmentation_scales,
            flip=True,
            devices=len(devices),
            accumulation=1,
            workers=args.workers,
        )

    def run(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """Seconds an update, of the wall and of this process's CPU."""
        number, cpu, wall = 0, time.process_time(), time.perf_counter()
        for batch in batches:
            number += 1
            self.state, values = self.step(self.state, batch)
            if jax.default_backend() == "cpu":
                jax.block_until_ready(values)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - wall) / number, (time.process_time() - cpu) / number


def main(args: Args) -> None:
    training = Training(args)
    constant = next(training.batches)
    took = {"constant": [], "read": []}
    for _ in range(args.rounds + 1):
        took["constant"].append(training.run(itertools.repeat(constant, args.updates)))
        training.run(itertools.islice(training.batches, STOCK))
        took["read"].append(training.run(itertools.islice(training.batches, args.updates)))
    if args.trace is not None:
        with contextlib.closing(training.batches), jax.profiler.trace(str(args.trace)):
            training.run(itertools.islice(training.batches, args.updates))
    report = {"preset": args.preset, "device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for i, clock in enumerate(("wall", "cpu")):
        rounds = {kind: [pair[i] for pair in pairs[1:]] for kind, pairs in took.items()}
        for kind, seconds in rounds.items():
            middle = statistics.median(seconds)
            report[f"{kind} {clock}"] = middle
            spread = max(seconds) / min(seconds)
            print(f"{kind:10}{clock:6}{middle:9.4f} s an update, spread {spread:.2f}")
        ratios = np.divide(rounds["read"], rounds["constant"])
        report[f"ratio {clock}"] = float(np.median(ratios))
        print(f"{'ratio':10}{clock:6}{report[f'ratio {clock}']:9.3f}")
    print(json.dumps(report))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import cli

    main(cli.parse(Args, __doc__))
