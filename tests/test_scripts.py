"""The scripts as people type them: real command lines, real processes, real files."""

import doctest
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from runs_with_faults import NUM_STEPS, TINY

from deeplab_jax import load, presets
from deeplab_jax import workdir as runs
from deeplab_jax.data import scenes
from deeplab_jax.weights import files

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def command(script, *arguments):
    return [sys.executable, str(EXPERIMENTS / script), *map(str, arguments)]


def run(script, *arguments, cwd, **environment):
    """(exit status, standard output, standard error) of one script."""
    done = subprocess.run(
        command(script, *arguments),
        cwd=cwd,
        env={**os.environ, "XLA_FLAGS": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture(scope="module")
def trained(folder, trained_run):
    """A run that was not interrupted, and its output."""
    shutil.copytree(trained_run, folder, dirs_exist_ok=True)
    return folder / "whole", (folder / "output.txt").read_text()


def test_training_leaves_score_curves_and_pictures(trained):
    workdir, out = trained
    score = json.loads((workdir / "score.json").read_text())
    assert 0 <= score["mean_iou"] <= 1
    assert len(score["iou"]) == len(runs.read_run(workdir).class_names)
    assert f"mean IoU {score['mean_iou']:.4f} on val" in out
    assert logged_updates(workdir) == list(range(1, NUM_STEPS + 1))
    for picture in ("curves.png", "sheet.png"):
        assert np.asarray(PILImage.open(workdir / picture)).std() > 10


def logged_updates(workdir):
    return [record["step"] for record in runs.read_metrics(workdir) if "loss" in record]


def arrays(variables):
    return files.flatten(variables)


def test_the_same_command_after_the_end_changes_nothing(folder, trained):
    before = arrays(load(folder / "whole")[1])
    status, _, err = run("train_voc.py", *TINY, "--workdir", "whole", cwd=folder)
    assert status == 0, err
    after = arrays(load(folder / "whole")[1])
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_evaluation_gives_the_score_of_the_run(folder, trained):
    status, out, err = run("evaluate_voc.py", "whole", cwd=folder)
    assert status == 0, err
    report = json.loads((folder / "whole" / "evaluation.json").read_text())
    score = json.loads((folder / "whole" / "score.json").read_text())
    assert report["network"]["mean_iou"] == pytest.approx(score["mean_iou"], abs=1e-6)
    assert "pixel accuracy" in out


def test_prediction_takes_photographs_as_people_have_them(folder, trained):
    photos = folder / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (40, 70, 3), np.uint8)
    turned = PILImage.Exif()
    turned[274] = 6  # the camera was held upright: 90 degrees
    PILImage.fromarray(rgb).save(photos / "turned.jpg", exif=turned)
    PILImage.fromarray(rgb[..., 0]).save(photos / "grey.png")
    PILImage.fromarray(np.dstack([rgb, rgb[..., 0]])).save(photos / "alpha.png")
    status, out, err = run("predict.py", "whole", "photos", "--probs", cwd=folder)
    assert status == 0, err
    sizes = {p.stem: PILImage.open(p).size for p in (folder / "predictions").glob("*.png")}
    assert sizes == {"turned": (40, 70), "grey": (70, 40), "alpha": (70, 40)}
    assert PILImage.open(folder / "predictions" / "grey.png").mode == "P"
    probs = np.load(folder / "predictions" / "turned_probs.npy")
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
    assert probs.shape[:2] == (70, 40)


def test_the_notebook_lines_of_the_readme_run(folder, trained, monkeypatch):
    (folder / "runs").mkdir()
    (folder / "runs" / "quickstart").symlink_to(trained[0], target_is_directory=True)
    rng = np.random.default_rng(0)
    photograph = PILImage.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8))
    photograph.save(folder / "photograph.jpg")
    monkeypatch.chdir(folder)
    names = {}
    text = (EXPERIMENTS.parent / "README.md").read_text()
    examples = doctest.DocTestParser().get_doctest(text, names, "README.md", "README.md", 0)
    result = doctest.DocTestRunner().run(examples, clear_globs=False)
    assert (result.attempted, result.failed) == (6, 0)
    assert examples.globs["picture"].shape[1:] == (60, 3)
    np.testing.assert_allclose(examples.globs["probs"].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give --data.root FOLDER"),
        (["--num-steps", "3"], "give --data.root FOLDER"),
        (["small", "--num-steps", "3"], "give --data.root FOLDER"),
        (["quikstart"], "did you mean quickstart?"),
        (
            [
                "table3_aspp_l",
                "--data.train-split",
                "train",
                "--data.root",
                "x",
                "--data.crop-size",
                "320",
            ],
            "such as 313 or 321",
        ),
        (["quickstart", "--model.norm", "frozen", "--workdir", "new"], "--model.norm trained"),
        (["small", "--data.root", "nowhere"], "nowhere"),
        ("quickstart --data.num-scenes 4 --num-devices 99 --workdir new".split(), "is 99"),
        (["quickstart", "--weights", "no.safetensors", "--workdir", "new"], "no.safetensors"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(script, capsys, arguments, sentence):
    status = script(*arguments)
    err = capsys.readouterr().err
    assert status == 2
    assert sentence in err
    assert err.count("error:") == 1 and "Traceback" not in err


def test_faults_in_the_data_end_a_run_before_anything_is_prepared(script, capsys, tmp_path):
    scenes.write_scenes(tmp_path / "scenes", num_train=3, num_val=2, size=64, seed=0)
    photograph, *_ = sorted((tmp_path / "scenes/JPEGImages").iterdir())
    PILImage.open(photograph).convert("L").save(photograph)
    masks = sorted((tmp_path / "scenes/SegmentationClass").iterdir())
    for mask in masks[-2:]:
        PILImage.fromarray(np.full((64, 64), 99, np.uint8)).save(mask)
    prepared = tmp_path / "prepared"
    options = ["--data.root", str(tmp_path / "scenes"), "--prepared-dir", str(prepared)]
    assert script("small", *options) == 2
    out, err = capsys.readouterr()
    assert f"note   {photograph} is grey" in out
    assert f"{masks[-2]} holds the label 99" in err
    assert "faults found: 2, experiments/check_data.py lists them" in err
    assert not prepared.exists()


def test_a_misspelt_option_is_refused(script, capsys):
    assert script("small", "--num-stepz", "3") == 2
    assert "--num-stepz" in capsys.readouterr().err


def test_help_piped_to_a_reader_that_ends_gives_no_error():
    asked = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command("train_voc.py", "small", "--help"), text=True, **asked)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(timeout=60) == 0


def test_another_configuration_in_a_work_folder_is_refused_by_name(script, capsys, trained):
    workdir = trained[0]
    before = sorted(p.name for p in workdir.rglob("*"))
    arguments = [*TINY, "--workdir", str(workdir)]
    assert script(*arguments, "--optim.momentum", "0.5") == 2
    assert "optim.momentum 0.9, and 0.5 was asked for" in capsys.readouterr().err
    assert sorted(p.name for p in workdir.rglob("*")) == before


def test_a_second_run_in_a_work_folder_is_refused(script, capsys, trained):
    lock = runs.hold(trained[0])
    assert script(*TINY, "--workdir", str(trained[0])) == 2
    assert "another run is in" in capsys.readouterr().err
    lock.close()


@pytest.fixture
def script(monkeypatch, folder):
    """Runs train_voc.py in this process; gives its exit status."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.chdir(folder)
    import cli
    import train_voc

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_voc.py", *arguments])
        try:
            config = cli.parse_preset(presets.PRESETS, presets.DEFAULT_PRESET, train_voc.__doc__)
            cli.run(train_voc.main, config)
        except SystemExit as end:
            return end.code
        return 0

    return call
