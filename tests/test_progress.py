"""What a run tells of itself: what TensorBoard will show, and metrics.jsonl."""

import io
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from deeplab_jax import workdir
from deeplab_jax.progress import Progress


def summaries(folder):
    """(update, tag, value) of each summary in the event files: length, sum, event, sum."""
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            yield from ((event.step, value.tag, value) for value in event.summary.value)


def progress_in(folder, *, num_steps, **options):
    options = {"batch_size": 1, "log_every": 1, "rate": lambda number: 0.1 * number, **options}
    return Progress(folder, start=0, num_steps=num_steps, **options)


def step(progress, number, loss=1.0):
    values = {"loss": loss, "skipped": 0, "skipped_in_a_row": 0}
    progress.step(number, jax.block_until_ready(jax.tree.map(jnp.asarray, values)))


@pytest.fixture
def shown(tmp_path):
    """What is there after four updates and two scores with a picture each."""
    pictures = {n: np.full((6, 10, 3), n, np.uint8) for n in (2, 4)}
    options = {"batch_size": 8, "log_every": 2, "options": {"data.root": "pets"}}
    with progress_in(tmp_path, num_steps=4, **options) as progress:
        for number in range(1, 5):
            step(progress, number, 1 / number)
            if number in pictures:
                progress.score(number, {"mean_iou": number / 10}, pictures[number])
    return tmp_path, pictures, list(summaries(tmp_path / "tensorboard"))


def test_photographs_beside_truth_and_prediction_are_in_tensorboard(shown):
    _, pictures, found = shown
    images = {step: value.image for step, tag, value in found if tag == "val/photographs"}
    assert images.keys() == pictures.keys()
    for step, image in images.items():
        drawn = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(drawn, pictures[step])


def test_curves_are_in_tensorboard_and_in_the_metrics(shown):
    folder, _, found = shown
    expected = {
        "train/loss": [(2, 1 / 2), (4, 1 / 4)],
        "train/learning_rate": [(2, 0.2), (4, 0.4)],
        "val/mean_iou": [(2, 0.2), (4, 0.4)],
    }
    records = workdir.read_metrics(folder)
    for tag, points in expected.items():
        curve = [(step, value.simple_value) for step, other, value in found if other == tag]
        name = tag.split("/")[1]
        np.testing.assert_allclose(curve, points, rtol=1e-6)
        logged = [(record["step"], record[name]) for record in records if name in record]
        np.testing.assert_allclose(logged, points, rtol=1e-6)


def test_options_are_a_text_in_tensorboard(shown):
    kinds = [(value.metadata.plugin_data.plugin_name, value) for _, _, value in shown[2]]
    (text,) = (value for kind, value in kinds if kind == "text")
    assert "| data.root | pets |" in text.tensor.string_val[0].decode()


def run_of(folder, seconds, monkeypatch, *, score_after=None):
    """A run whose updates take so many seconds, with a score of 1000 s after one of them."""
    now = 0.0
    monkeypatch.setattr("deeplab_jax.progress.time.monotonic", lambda: now)
    with progress_in(folder, num_steps=len(seconds) + 10) as progress:
        progress.begin()
        for number, took in enumerate(seconds, 1):
            now += took
            step(progress, number)
            if number == score_after:
                progress.flush()
                now += 1000
                progress.score(number, {"mean_iou": 0.5}, None)


def test_each_update_is_timed_by_its_own_end(tmp_path, monkeypatch):
    """Lines are written an update late; an update that is done counts up to its own end."""
    run_of(tmp_path, (0.05, 0.2, 0.1), monkeypatch)
    speeds = [record["images_per_second"] for record in workdir.read_metrics(tmp_path)]
    np.testing.assert_allclose(speeds, [20, 5, 10])


def test_a_log_file_has_a_plain_line_for_each_logged_update(tmp_path, monkeypatch, capsys):
    run_of(tmp_path, (60, 2, 2), monkeypatch)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "compiling the update (about a minute, once)",
        "update 1 of 13: loss 1.000, 0.0 images/s",
        "update 2 of 13: loss 1.000, 0.5 images/s, 0:00:22 left",
        "update 3 of 13: loss 1.000, 0.5 images/s, 0:00:20 left",
    ]


def test_the_estimate_leaves_out_the_first_update_and_scores(tmp_path, monkeypatch, capsys):
    run_of(tmp_path, (60, 2, 2, 2), monkeypatch, score_after=3)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "update 4 of 14: loss 1.000, 0.5 images/s, 0:00:20 left"
