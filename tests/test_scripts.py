"""The scripts as people type them: real command lines, real files."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import runs_with_faults as faults
from drawn_folder import turned
from PIL import Image as PILImage
from runs_with_faults import EXPERIMENTS, NUM_STEPS, TINY, run_script, start_script

from deeplab_jax import workdir
from deeplab_jax.data import scenes
from deeplab_jax.presets import PRESETS

SCRIPTS = sorted(path.name for path in EXPERIMENTS.glob("*.py") if "cli.run(" in path.read_text())


@pytest.fixture
def there(script, folder, monkeypatch):
    """`script` in the folder of the run."""
    monkeypatch.chdir(folder)
    return script


def test_training_leaves_score_curves_and_pictures(folder):
    run = folder / "whole"
    score = json.loads((run / "score.json").read_text())
    assert 0 <= score["mean_iou"] <= 1
    assert len(score["iou"]) == len(workdir.read_run(run).class_names)
    assert f"mean IoU {score['mean_iou']:.4f} on val" in (folder / "output.txt").read_text()
    assert faults.updates(run) == list(range(1, NUM_STEPS + 1))
    for picture in ("curves.png", "sheet.png"):
        assert np.asarray(PILImage.open(run / picture)).std() > 10


def test_the_same_command_after_the_end_changes_nothing(folder, there):
    before = faults.arrays(folder / "whole")
    assert there("train_voc", *TINY, "--workdir", "whole") == 0
    after = faults.arrays(folder / "whole")
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_evaluation_gives_the_score_of_the_run(folder, there, capsys):
    assert there("evaluate_voc", "whole") == 0
    report, score = (
        json.loads((folder / "whole" / name).read_text())
        for name in ("evaluation.json", "score.json")
    )
    assert report["network"]["mean_iou"] == pytest.approx(score["mean_iou"], abs=1e-6)
    out = capsys.readouterr().out
    assert out.startswith("scored on the split val: ") and "pixel accuracy" in out


def test_a_photograph_is_predicted_as_its_camera_was_held(folder, there):
    PILImage.new("L", (70, 40)).save(folder / "grey.png", exif=turned(6))
    assert there("predict", "whole", "grey.png", "--output", "predicted") == 0
    labels = PILImage.open(folder / "predicted/grey.png")
    assert (labels.size, labels.mode) == ((40, 70), "P")


@pytest.mark.parametrize("page", ["README.md", "deeplab_jax/crf/README.md"])
def test_the_first_lines_of_python_on_a_page_run(page, tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(EXPERIMENTS)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"```python\n(.*?)```", (EXPERIMENTS.parent / page).read_text(), re.DOTALL)
    names: dict = {}
    exec(lines[0], names)
    for name in ("probs", "refined" if "refined" in names else "probs"):
        assert names[name].shape[:2] == names["image"].shape[:2]
        np.testing.assert_allclose(names[name].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("small --num-steps 3", "give --data.root FOLDER"),
        ("resnet101_asp", "did you mean resnet101_aspp?\n"),
        ("quickstart --model.norm frozen --workdir new", "--model.norm trained"),
        ("small --data.root nowhere", "nowhere"),
        ("quickstart --data.num-scenes 4 --num-devices 99 --workdir new", "num_devices is 99"),
        ("quickstart --weights no.safetensors --workdir new", "no.safetensors"),
        (f"{' '.join(TINY)} --workdir whole --optim.momentum 0.5", "optim.momentum 0.9, and 0.5 "),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(folder, there, capsys, arguments, sentence):
    before = sorted((folder / "whole").rglob("*"))
    assert there("train_voc", *arguments.split()) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("error:") == 1 and "Traceback" not in err
    assert sorted((folder / "whole").rglob("*")) == before


def test_a_second_run_in_a_work_folder_is_refused(there, capsys, folder):
    with workdir.hold(folder / "whole"):
        assert there("train_voc", *TINY, "--workdir", "whole") == 2
    assert "another run is in" in capsys.readouterr().err


def test_faults_in_the_data_end_a_run_before_anything_is_prepared(script, capsys, tmp_path):
    scenes.write_scenes(tmp_path / "scenes", num_train=3, num_val=2, size=64, seed=0)
    photograph, *_ = sorted((tmp_path / "scenes/JPEGImages").iterdir())
    PILImage.open(photograph).convert("L").save(photograph)
    masks = sorted((tmp_path / "scenes/SegmentationClass").iterdir())
    for mask in masks[-2:]:
        PILImage.fromarray(np.full((64, 64), 99, np.uint8)).save(mask)
    options = ["--data.root", tmp_path / "scenes", "--prepared-dir", "prepared"]
    assert script("train_voc", "small", *options) == 2
    out, err = capsys.readouterr()
    assert f"note   {photograph} is grey" in out
    assert f"{masks[-2]} holds the label 99" in err
    assert "faults found: 2, experiments/check_data.py lists them" in err
    assert not Path("prepared").exists()


def test_the_first_word_names_the_preset_and_options_change_its_fields(monkeypatch):
    import cli

    def parsed(line):
        monkeypatch.setattr("sys.argv", ["train_voc.py", *line.split()])
        return cli.parse_preset(PRESETS, "small", "")

    request = parsed("table1_4x4 --seed 5 --data.no-flip --model.alignment corners")
    assert request.preset == "table1_4x4" and request.config.workdir == Path("runs/table1_4x4")
    assert (request.config.seed, request.config.data.flip) == (5, False)
    assert request.config.num_steps == PRESETS["table1_4x4"].num_steps
    assert request.command.endswith("--model.alignment corners")
    assert parsed("--num-steps 3 --workdir x").config.workdir == Path("x")
    assert parsed("").preset == "small"


def test_a_misspelt_option_is_answered_with_the_nearest_and_status_2(script, capsys):
    assert script("train_voc", "small", "--optim.lerning-rate", 3) == 2
    assert "--optim.learning-rate" in capsys.readouterr().err


def test_a_users_mistake_is_one_sentence_and_status_2(tmp_path):
    printed = run_script("evaluate_voc.py", "./", cwd=tmp_path, status=2)
    assert printed == "error: . is not a work folder: it holds no config.json\n"


@pytest.mark.parametrize("platform", ["cuda", "CPU"])
def test_a_platform_that_is_not_there_is_told_in_one_sentence(folder, platform):
    words = ("predict.py", "whole", "data/JPEGImages", "--output", "nowhere")
    printed = run_script(*words, cwd=folder, status=2, JAX_PLATFORMS=platform)
    assert f"JAX_PLATFORMS is {platform}" in printed and "Traceback" not in printed


def test_help_piped_to_a_reader_that_ends_gives_no_error(tmp_path):
    process = start_script("train_voc.py", "small", "--help", cwd=tmp_path)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(timeout=60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_its_options(name, tmp_path):
    printed = run_script(name, "--help", cwd=tmp_path)
    assert "usage:" in printed and "--help" in printed


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_script_with_status_75_whenever_it_comes(tmp_path, number, seconds):
    process = start_script("train_voc.py", "quickstart", cwd=tmp_path)
    time.sleep(seconds)
    process.send_signal(number)
    told = "".join(process.communicate(timeout=60))
    assert process.returncode in (75, -number) if seconds < 1 else process.returncode == 75, told
    assert "Traceback" not in told


SCRIPT = Path(__file__).parents[1] / "experiments/train.slurm"

SRUN = """#!/bin/bash
# In place of a trainer, which saves at SIGTERM: gets the signal of the job, once.
shift 2  # python experiments/train_voc.py
echo "$@" >> log
if [ ! -e requeued ]; then
  trap 'echo saved >> log; exit 75' TERM
  kill -{signal} $$
fi
"""


@pytest.fixture
def sbatch(tmp_path):
    """Submits the script with arguments, once more each time it is queued again; exit statuses."""
    signal = re.search(r"^#SBATCH --signal=(\w+)@\d+$", SCRIPT.read_text(), re.M)[1]
    requeue = '#!/bin/bash\necho "$@" >> requeued\n'
    commands = {"srun": SRUN.format(signal=signal), "scontrol": requeue}
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def submit(*arguments, tasks=1):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        environment["SLURM_NTASKS"] = str(tasks)
        statuses, requeued = [], tmp_path / "requeued"
        while not statuses or len(requeued.read_text().splitlines()) == len(statuses):
            done = subprocess.run(
                ["bash", SCRIPT, *arguments], cwd=tmp_path, env=environment, timeout=60
            )
            statuses.append(done.returncode)
        return statuses

    return submit


def test_a_job_that_reaches_its_time_limit_saves_and_is_queued_again(sbatch, tmp_path):
    assert sbatch("small", "--data.root", "two words") == [75, 0]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert (tmp_path / "log").read_text().splitlines() == [
        "small --data.root two words", "saved", "small --data.root two words",
    ]  # fmt: skip


def test_several_tasks_find_each_other_by_the_cluster(sbatch, tmp_path):
    sbatch("small", tasks=4)
    assert "small --distributed" in (tmp_path / "log").read_text()
