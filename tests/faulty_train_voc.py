"""train_voc.py with one fault built in: FAULT names it, the command line is that of train_voc.py.

    kill:PLACE:N    SIGKILL of this process inside its Nth save, at a PLACE of save_faults.PLACES
    slow_save:FILE  a save makes FILE and then never ends
    nan:A:B         the network sees NaN instead of the photographs of updates A to B
    nan:A:B:N       instead of those from number N of an update on
    slow:SECONDS    an update takes so long
    slow_score:FILE a score makes FILE and takes two seconds a photograph

With RECORD=FILE a line an update tells its number and a digest of its batch.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import cli
import train_voc
from save_faults import before, kill_in_save

from deeplab_jax import checkpoints, diagnosis, presets, train
from deeplab_jax.interruption import Interruption
from deeplab_jax.models.deeplab import make_inputs


def slow_save(path):
    before(checkpoints, "write_arrays", lambda *_: (Path(path).touch(), time.sleep(1000)))


def change_batches(change):
    """Has the batches of a run, numbered from 1, pass through `change`."""
    batches = train_voc.batches

    def changed(setup, begin, end, *, of):
        return change(enumerate(batches(setup, begin, end, of=of), begin + 1))

    train_voc.batches = changed


SPOILT = 77
"""Photographs of this value everywhere are NaN to the network."""


def inputs_or_nan(image, mean):
    spoilt = (image == SPOILT).all((-3, -2, -1), keepdims=True)
    return jnp.where(spoilt, jnp.nan, make_inputs(image, mean))


def see_nan(first, last, sample="0"):
    def spoil(numbered):
        for number, batch in numbered:
            if int(first) <= number <= int(last):
                batch.image[batch.sample >= int(sample)] = SPOILT
            yield batch

    change_batches(spoil)
    train.make_inputs = diagnosis.make_inputs = inputs_or_nan


def slow(seconds):
    def wait(numbered):
        for _, batch in numbered:
            yield batch
            time.sleep(float(seconds))

    change_batches(wait)


def slow_score(path):
    between = Interruption.between

    def wait(self, numbers, **options):
        for number in between(self, numbers, **options):
            Path(path).touch()
            time.sleep(2)
            yield number

    Interruption.between = wait


def record(path):
    def recorded(numbered):
        for number, batch in numbered:
            digest = hashlib.sha256(batch.image.tobytes() + batch.labels.tobytes()).hexdigest()
            with open(path, "a") as file:
                file.write(f"{number} {digest}\n")
            yield batch

    change_batches(recorded)


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
    asked = cli.parse_preset(presets.PRESETS, presets.DEFAULT_PRESET, train_voc.__doc__)
    cli.run(train_voc.main, asked)
