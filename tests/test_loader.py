import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import jax
import numpy as np
import pytest

from deeplab_jax.data import loader


def drawn(length):
    """Photographs of one colour and one label: their number."""
    images = [np.full((20 + index, 30, 3), index, np.uint8) for index in range(length)]
    return [{"image": image, "labels": image[..., 0]} for image in images]


@dataclass(frozen=True)
class Noise:
    """Photographs in which no two pixels agree."""

    length: int = 7

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (40, 50 + index, 3), np.uint8)
        return {"image": image, "labels": image[..., 0] % 5, "name": str(index)}


def updates(source, **changes):
    options = {
        **{"seed": 1, "start": 0, "stop": 4, "batch_size": 5, "crop_size": 33, "flip": True},
        **{"scales": (0.5, 1.0, 1.5), "devices": 1, "accumulation": 1, "workers": 0},
        **changes,
    }
    return list(loader.batches(source, **options))


def photographs(batch):
    """Crops of an update by their number in it."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), batch)
    return {
        int(sample): (flat.image[place], flat.labels[place])
        for place, sample in enumerate(flat.sample)
        if sample >= 0
    }


def assert_same(batches, others):
    assert len(batches) == len(others)
    jax.tree.map(np.testing.assert_array_equal, batches, others)


def test_an_epoch_shows_every_photograph_once_in_an_order_of_its_own():
    batches = updates(drawn(6), stop=6, batch_size=3, scales=(1.0,), crop_size=20)
    shown = [int(labels[0, 0]) for b in batches for _, labels in photographs(b).values()]
    epochs = [shown[start : start + 6] for start in (0, 6, 12)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_update_t_is_the_same_whenever_the_run_starts():
    whole = updates(Noise(), stop=6)
    assert_same(whole[4:], updates(Noise(), start=4, stop=6))


def test_the_seed_changes_order_and_crops():
    one, other = updates(Noise(), stop=1)[0], updates(Noise(), stop=1, seed=2)[0]
    assert (one.image != other.image).mean() > 0.9


def test_photograph_number_g_is_cropped_alike_in_any_batch_size():
    small = updates(Noise(), stop=6, batch_size=2)
    large = updates(Noise(), stop=2, batch_size=6)
    numbered = [crop for batch in small for crop in photographs(batch).values()]
    others = [crop for batch in large for crop in photographs(batch).values()]
    jax.tree.map(np.testing.assert_array_equal, numbered, others)


@pytest.mark.parametrize(
    ("devices", "accumulation", "m"), [(1, 1, 5), (2, 1, 3), (4, 1, 2), (8, 1, 1), (2, 2, 2)]
)
def test_devices_and_accumulation_spread_the_same_photographs(devices, accumulation, m):
    expected = updates(Noise(), stop=1)[0]
    batch = updates(Noise(), stop=1, devices=devices, accumulation=accumulation)[0]
    assert batch.image.shape == (devices, accumulation, m, 33, 33, 3)
    assert batch.labels.shape == (devices, accumulation, m, 33, 33)
    assert batch.sample.dtype == np.int32
    jax.tree.map(np.testing.assert_array_equal, photographs(batch), photographs(expected))


def test_an_accumulation_step_holds_the_same_photographs_on_any_number_of_devices():
    for devices in (1, 2, 4):
        places = loader.place_samples(8, devices=devices, accumulation=2)
        assert set(places[:, 0].ravel()) == {0, 1, 2, 3}


def test_unused_slots_do_not_count():
    batch = updates(Noise(), stop=1, devices=8)[0]
    assert batch.sample.ravel().tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert (batch.labels[5:] == 255).all()
    assert (batch.image[5:] == (123, 117, 104)).all()


def test_an_update_may_be_larger_than_the_data_set():
    batch = updates(drawn(3), stop=1, batch_size=7)[0]
    assert sorted(photographs(batch)) == list(range(7))


def test_worker_processes_yield_the_batches_of_threads():
    threads = updates(Noise(), stop=5)
    assert_same(threads, updates(Noise(), stop=5, workers=2))


ENDLESS = """
import sys, time
sys.path.insert(0, {folder!r})
import test_loader

if __name__ == "__main__":
    from deeplab_jax.data import loader
    batches = loader.batches(
        test_loader.Noise(), seed=0, start=0, stop=10**6, batch_size=2, crop_size=9, scales=(1.0,),
        flip=False, devices=1, accumulation=1, workers=2,
    )
    next(batches)
    print("running", flush=True)
    time.sleep(100)
"""


def test_workers_die_with_a_killed_parent(tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS.format(folder=os.path.dirname(__file__)))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "running\n"
        parent.send_signal(signal.SIGKILL)
        # Workers hold the same pipe: it ends when the last of them does.
        assert parent.communicate(timeout=60)[0] == ""
