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
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import cli
import train_voc

from deeplab_jax import checkpoints, presets, train

PLACES = {
    "arrays": (checkpoints, "_checkpointer"),
    "manifest": (checkpoints, "digests"),
    "half a manifest": (checkpoints.json, "dump"),
    "rename": (Path, "rename"),
    "committed": (checkpoints, "_remove"),
    "removal": (shutil, "rmtree"),
}


def kill_in_save(place: str, count: str) -> None:
    owner, name = PLACES[place]
    write, saves = checkpoints.Saver._write, []

    def die(*arguments, **_):
        if place == "half a manifest":
            arguments[1].write(json.dumps(arguments[0])[:40])
            arguments[1].flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def count_saves(*arguments):
        saves.append(1)
        if len(saves) == int(count):
            setattr(owner, name, die)
        return write(*arguments)

    checkpoints.Saver._write = count_saves


def slow_save(path: str) -> None:
    def write(*_):
        Path(path).touch()
        time.sleep(1000)

    checkpoints.Saver._write = write


def see_nan(first: str, last: str, sample: str = "0") -> None:
    """The gradient of the step, and the diagnosis after it, read the number from the image."""
    make_inputs, batches = train.make_inputs, train_voc.batches

    def poison(image, mean):
        bad = (image == 77).all((-3, -2, -1), keepdims=True)
        return make_inputs(image, mean) * jnp.where(bad, jnp.nan, 1.0)

    def poisoned(setup, start, stop, **of):
        for number, batch in enumerate(batches(setup, start, stop, **of), start + 1):
            if int(first) <= number <= int(last):
                batch.image[batch.sample >= int(sample)] = 77
            yield batch

    train.make_inputs = train_voc.diagnosis.make_inputs = poison
    train_voc.batches = poisoned


def slow(seconds: str) -> None:
    block = train_voc.jax.block_until_ready

    def wait(values):
        time.sleep(float(seconds))
        return block(values)

    train_voc.jax.block_until_ready = wait


def slow_score(path: str) -> None:
    score = train_voc.score

    def slowly(setup, variables, source, asking=iter):
        def wait(numbers):
            for number in asking(numbers):
                Path(path).touch()
                time.sleep(2)
                yield number

        return score(setup, variables, source, wait)

    train_voc.score = slowly


def record(path: str) -> None:
    batches = train_voc.batches

    def recorded(setup, start, stop, **of):
        for number, batch in enumerate(batches(setup, start, stop, **of), start + 1):
            digest = hashlib.sha256(batch.image.tobytes() + batch.labels.tobytes()).hexdigest()
            with open(path, "a") as file:
                file.write(f"{number} {digest}\n")
            yield batch

    train_voc.batches = recorded


FAULTS = {
    "kill": kill_in_save,
    "slow_save": slow_save,
    "nan": see_nan,
    "slow": slow,
    "slow_score": slow_score,
}

if __name__ == "__main__":
    if "FAULT" in os.environ:
        fault, *arguments = os.environ["FAULT"].split(":")
        FAULTS[fault](*arguments)
    if "RECORD" in os.environ:
        record(os.environ["RECORD"])
    cli.run(
        train_voc.main, cli.parse_preset(presets.PRESETS, presets.DEFAULT_PRESET, train_voc.__doc__)
    )
