"""What a run tells of itself, and the snippets of experiments/loggers.md."""

import inspect
import io
import re
import struct
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_voc
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from deeplab_jax import workdir
from deeplab_jax.interruption import Stopped
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


def test_pictures_and_options_are_in_tensorboard(shown):
    _, pictures, found = shown
    images = {step: value.image for step, tag, value in found if tag == "val/photographs"}
    assert images.keys() == pictures.keys()
    for step, image in images.items():
        drawn = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
        np.testing.assert_array_equal(drawn, pictures[step])
    texts = [v for _, _, v in found if v.metadata.plugin_data.plugin_name == "text"]
    assert "| data.root | pets |" in texts[0].tensor.string_val[0].decode()


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
    """The estimate leaves out the first update and scores."""
    run_of(tmp_path, (60, 2, 2, 2), monkeypatch, score_after=3)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[:4] == [
        "compiling the update (about a minute, once)",
        "update 1 of 14: loss 1.000, 0.0 images/s",
        "update 2 of 14: loss 1.000, 0.5 images/s, 0:00:24 left",
        "update 3 of 14: loss 1.000, 0.5 images/s, 0:00:22 left",
    ]
    assert out.splitlines()[-1] == "update 4 of 14: loss 1.000, 0.5 images/s, 0:00:20 left"


EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PARTS = re.split(r"^## ", (EXPERIMENTS / "loggers.md").read_text(), flags=re.M)[1:]
SNIPPETS = {
    part.splitlines()[0]: re.findall(r"```python\n(.*?)```", part, flags=re.S)[0] for part in PARTS
}
PICTURE = np.full((6, 10, 3), 7, np.uint8)


def stand_in(monkeypatch, name):
    """A module of functions that record their calls."""
    module = Mock(Image=lambda image: ("Image", image))
    monkeypatch.setitem(sys.modules, name, module)
    return module


def logger_of(heading):
    names = {}
    exec(SNIPPETS[heading], names)
    return names["logger"]


def tell(folder, loggers, *, scores=(0.5,)):
    """Two updates, the second not finite, and scores with a picture after them."""
    with progress_in(folder, num_steps=9, loggers=loggers) as progress:
        for number, loss in ((1, 2.0), (2, np.nan)):
            step(progress, number, loss)
        for number, score in enumerate(scores, 2):
            progress.score(number, {"mean_iou": score}, PICTURE)


@pytest.mark.parametrize(
    ("heading", "module", "functions"),
    [
        ("Weights & Biases", "wandb", "init log log log log finish"),
        ("MLflow", "mlflow", "start_run log_metrics log_metrics log_image log_metrics end_run"),
    ],
)
def test_a_service_is_told_every_scalar_and_picture(
    monkeypatch, tmp_path, heading, module, functions
):
    recorded = stand_in(monkeypatch, module)
    tell(tmp_path, [logger_of(heading)])
    names, arguments, options = zip(*recorded.mock_calls, strict=True)
    assert list(names) == functions.split()
    assert [told["step"] for told in options[1:-1]] == [1, 2, 2, 2]
    assert arguments[1][0]["loss"] == 2.0
    assert {"learning_rate", "images_per_second"} <= arguments[1][0].keys()
    assert np.isnan(arguments[2][0]["loss"])
    picture = arguments[3][0]["val"][1] if module == "wandb" else arguments[3][0]
    np.testing.assert_array_equal(picture, PICTURE)
    assert arguments[4][0] == {"mean_iou": 0.5}
    if module == "wandb":
        assert options[0] == {"project": "deeplab", "id": "small", "resume": "allow"}


def test_early_stopping_ends_the_run_after_the_third_score_without_gain(tmp_path):
    scores = (0.2, 0.4, 0.4, 0.1, 0.5, 0.5, 0.3, 0.4, 0.9)
    with pytest.raises(Stopped, match=r"3 scores in a row brought no gain over 0.5000"):
        tell(tmp_path, [logger_of("Early stopping")], scores=scores)
    scored = [r["mean_iou"] for r in workdir.read_metrics(tmp_path) if "mean_iou" in r]
    assert scored == list(scores[:8])  # the file is written before the logger ends the run


def test_the_last_snippet_hands_the_logger_to_the_script(monkeypatch):
    recorded = stand_in(monkeypatch, "cli")
    logger = object()
    exec(SNIPPETS["Train"], {"logger": logger})
    main, _ = recorded.run.call_args.args
    assert main.func is train_voc.main
    assert main.keywords == {"loggers": [logger]}
    inspect.signature(main.func).bind(None, **main.keywords)


def test_every_logger_is_closed_though_one_fails(tmp_path):
    fails = {"scalars.side_effect": RuntimeError, "close.side_effect": RuntimeError}
    loggers = [Mock(**fails), Mock(**fails)]
    with pytest.raises(RuntimeError):
        tell(tmp_path, loggers)
    for logger in loggers:
        logger.close.assert_called_once()
    assert [r["step"] for r in workdir.read_metrics(tmp_path)] == [1]


def test_a_score_has_one_line_however_often_it_is_told(tmp_path):
    for _ in range(2):
        with progress_in(tmp_path, num_steps=3) as progress:
            progress.score(3, {"mean_iou": 0.5, "boundary_iou": np.nan}, None)
    assert workdir.read_metrics(tmp_path) == [{"step": 3, "mean_iou": 0.5, "boundary_iou": None}]
