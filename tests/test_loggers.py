"""The snippets of experiments/loggers.md, with stand-ins that record what they are told."""

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

from deeplab_jax import workdir
from deeplab_jax.interruption import Stopped
from deeplab_jax.progress import Curves, MetricsFile, Progress

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PARTS = re.split(r"^## ", (EXPERIMENTS / "loggers.md").read_text(), flags=re.M)[1:]
SNIPPETS = {
    part.splitlines()[0]: re.findall(r"```python\n(.*?)```", part, flags=re.S)[0] for part in PARTS
}
PICTURE = np.full((6, 10, 3), 7, np.uint8)


def stand_in(monkeypatch, name, functions):
    """A module whose functions record their names and arguments, in the list returned."""
    module, calls = ModuleType(name), []
    for function in functions:

        def record(*arguments, function=function, **options):
            calls.append((function, arguments, options))

        setattr(module, function, record)
    module.Image = lambda image: ("Image", image)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def logger_of(heading):
    names = {}
    exec(SNIPPETS[heading], names)
    return names["logger"]


def tell(folder, loggers, *, scores=(0.5,)):
    """Two updates, the second not finite, and scores with a picture after them."""
    options = {"start": 0, "num_steps": 9, "batch_size": 1, "log_every": 1, "rate": lambda n: 0.1}
    with Progress(folder, **options, loggers=loggers) as progress:
        for number, loss in ((1, 2.0), (2, np.nan)):
            values = {"loss": loss, "skipped": 0, "skipped_in_a_row": 0}
            progress.step(number, {name: jnp.asarray(value) for name, value in values.items()})
        for number, score in enumerate(scores, 2):
            progress.score(number, {"mean_iou": score}, PICTURE)


def test_weights_and_biases_is_told_every_scalar_and_picture(monkeypatch, tmp_path):
    calls = stand_in(monkeypatch, "wandb", ("init", "log", "finish"))
    tell(tmp_path, [logger_of("Weights & Biases")])
    assert [name for name, _, _ in calls] == ["init", "log", "log", "log", "log", "finish"]
    assert calls[0][2] == {"project": "deeplab", "id": "small", "resume": "allow"}
    steps = [options["step"] for name, _, options in calls if name == "log"]
    assert steps == [1, 2, 2, 2]
    logged = [arguments[0] for name, arguments, _ in calls if name == "log"]
    assert logged[0]["loss"] == 2.0
    assert {"learning_rate", "images_per_second"} <= logged[0].keys()
    assert np.isnan(logged[1]["loss"])
    np.testing.assert_array_equal(logged[2]["val"][1], PICTURE)
    assert logged[3] == {"mean_iou": 0.5}


def test_mlflow_is_told_every_scalar_and_picture(monkeypatch, tmp_path):
    functions = ("start_run", "log_metrics", "log_image", "end_run")
    calls = stand_in(monkeypatch, "mlflow", functions)
    tell(tmp_path, [logger_of("MLflow")])
    expected = ["start_run", "log_metrics", "log_metrics", "log_image", "log_metrics", "end_run"]
    assert [name for name, _, _ in calls] == expected
    assert calls[3][2] == {"key": "val", "step": 2}
    assert calls[4][1:] == (({"mean_iou": 0.5},), {"step": 2})


def test_early_stopping_ends_the_run_after_the_third_score_without_gain(tmp_path):
    scores = (0.2, 0.4, 0.4, 0.1, 0.5, 0.5, 0.3, 0.4, 0.9)
    with pytest.raises(Stopped, match=r"3 scores in a row brought no gain over 0.5000"):
        tell(tmp_path, [logger_of("Early stopping")], scores=scores)
    scored = [r["mean_iou"] for r in workdir.read_metrics(tmp_path) if "mean_iou" in r]
    assert scored == list(scores[:8])  # the file is written before the logger ends the run


def test_the_last_snippet_hands_the_logger_to_the_script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import train_voc

    calls = stand_in(monkeypatch, "cli", ("parse_preset", "run"))
    logger = object()
    exec(SNIPPETS["Train"], {"logger": logger})
    (main, _), _ = calls[1][1:]
    assert main.func is train_voc.main
    assert main.keywords == {"loggers": [logger]}
    inspect.signature(main.func).bind(None, **main.keywords)


def test_every_logger_is_closed_though_one_fails(tmp_path):
    closed = []

    class Failing:
        def __init__(self, name):
            self.name = name

        def scalars(self, step, values):
            raise RuntimeError(self.name)

        def picture(self, step, name, image):
            pass

        def close(self):
            closed.append(self.name)
            raise RuntimeError(self.name)

    with pytest.raises(RuntimeError):
        tell(tmp_path, [Failing("a"), Failing("b")])
    assert sorted(closed) == ["a", "b"]
    assert [r["step"] for r in workdir.read_metrics(tmp_path)] == [1]


def test_a_score_has_one_line_however_often_it_is_told(tmp_path):
    for _ in range(2):
        for logger in (MetricsFile(tmp_path), Curves(tmp_path / "tensorboard", start=0)):
            logger.scalars(3, {"mean_iou": 0.5, "boundary_iou": np.nan})
            logger.close()
    assert workdir.read_metrics(tmp_path) == [{"step": 3, "mean_iou": 0.5, "boundary_iou": None}]
