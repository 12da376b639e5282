"""train_voc.py with one fault built in: FAULT names it, the command line is that of train_voc.py.

    kill:PLACE:N    SIGKILL of this process inside its Nth save, at a PLACE of PLACES
    slow_save:FILE  a save makes FILE and then never ends
    nan:A:B         the network sees NaN instead of the photographs of updates A to B
    nan:A:B:N       instead of those from number N of an update on
    slow:SECONDS    an update takes so long
    slow_score:FILE a score makes FILE and takes two seconds a photograph

With RECORD=FILE a line an update tells its number and a digest of its batch.
"""

import hashlib
import os
import signal
import sys
import time
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import cli
import train_voc

from deeplab_jax import checkpoints, presets
from deeplab_jax.models.deeplab import DeepLabV2, build, make_inputs
from deeplab_jax.models.layers import EVALUATION

PLACES = ("arrays", "manifest", "half a manifest", "rename", "committed", "removal")
SPOILT = 77
"""Photographs of this value everywhere are NaN to the network."""


class SeesNaN(DeepLabV2):
    """The network, which takes photographs of SPOILT for NaN."""

    def score_maps(self, inputs, mode=EVALUATION):
        spoilt = make_inputs(jnp.full((3,), SPOILT, jnp.uint8), self.mean_bgr)
        bad = (inputs == spoilt).all((-3, -2, -1), keepdims=True)
        return super().score_maps(jnp.where(bad, jnp.nan, inputs), mode)


def network_that_sees_nan(num_classes):
    """The network of the tests of faults (runs_with_faults.TINY) as --model-file builds it."""
    tiny = {"stage_sizes": (1, 1, 1, 1), "width": 4, "aspp_rates": (1, 2)}
    model = build(num_classes, **asdict(replace(presets.PRESETS["small"].model, **tiny)))
    parts = {f.name: getattr(model, f.name) for f in fields(model)}
    return SeesNaN(**{name: part for name, part in parts.items() if name not in ("parent", "name")})


def kill_in_save(place, count):
    stage, saves = place.removeprefix("half a "), set()

    def kill(reached, path):
        if reached == "arrays":
            saves.add(path)
        if len(saves) < int(count) or reached != stage:
            return
        if place == "half a manifest":
            (path / checkpoints.MANIFEST).write_text('{\n "step": 2,\n "files": {\n  "model/man')
        os.kill(os.getpid(), signal.SIGKILL)

    return {"saving": kill}


def slow_save(path):
    def save(stage, folder):
        Path(path).touch()
        time.sleep(1000)

    return {"saving": save}


def see_nan(first, last, sample="0"):
    def spoil(start, batches):
        for number, batch in enumerate(batches, start + 1):
            if int(first) <= number <= int(last):
                batch.image[batch.sample >= int(sample)] = SPOILT
            yield batch

    return {"batches": spoil}


def slow(seconds):
    def wait(start, batches):
        for batch in batches:
            yield batch
            time.sleep(float(seconds))

    return {"batches": wait}


def slow_score(path):
    def wait(numbers):
        for number in numbers:
            Path(path).touch()
            time.sleep(2)
            yield number

    return {"scored": wait}


def recorded(path, hook, start, batches):
    for number, batch in enumerate(hook(start, batches), start + 1):
        digest = hashlib.sha256(batch.image.tobytes() + batch.labels.tobytes()).hexdigest()
        with open(path, "a") as file:
            file.write(f"{number} {digest}\n")
        yield batch


FAULTS = {
    "kill": kill_in_save,
    "slow_save": slow_save,
    "nan": see_nan,
    "slow": slow,
    "slow_score": slow_score,
}

if __name__ == "__main__":
    hooks = train_voc.Hooks()
    if "FAULT" in os.environ:
        fault, *arguments = os.environ["FAULT"].split(":")
        hooks = replace(hooks, **FAULTS[fault](*arguments))
        if fault == "nan":
            sys.argv += ["--model-file", f"{__file__}:{network_that_sees_nan.__name__}"]
    if "RECORD" in os.environ:
        hooks = replace(hooks, batches=partial(recorded, os.environ["RECORD"], hooks.batches))
    cli.run(
        partial(train_voc.main, hooks=hooks),
        cli.parse_preset(presets.PRESETS, presets.DEFAULT_PRESET, train_voc.__doc__),
    )
