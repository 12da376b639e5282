"""What users type, and what the scripts make of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deeplab_jax.presets import PRESETS

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SCRIPTS = sorted(path.name for path in EXPERIMENTS.glob("*.py") if "cli.run(" in path.read_text())


@pytest.fixture
def cli(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import cli

    return cli


def script(*words, status):
    """What a script prints, both streams."""
    command = [sys.executable, str(EXPERIMENTS / words[0]), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_first_word_names_the_preset_and_options_change_its_fields(cli, monkeypatch):
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


def test_a_preset_that_is_not_there_is_answered_with_the_nearest(cli, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_voc.py", "resnet101_asp"])
    with pytest.raises(SystemExit) as ended:
        cli.parse_preset(PRESETS, "small", "")
    assert ended.value.code == 2
    assert "did you mean resnet101_aspp?" in capsys.readouterr().err


def test_a_misspelt_option_is_answered_with_the_nearest_and_status_2():
    printed = script("train_voc.py", "small", "--optim.lerning-rate", "3", status=2)
    assert "--optim.learning-rate" in printed and "Traceback" not in printed


def test_a_users_mistake_is_one_sentence_and_status_2(tmp_path):
    printed = script("evaluate_voc.py", str(tmp_path), status=2)
    assert printed == f"error: {tmp_path} is not a work folder: it holds no config.json\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_its_options(name):
    printed = script(name, "--help", status=0)
    assert "usage:" in printed and "--help" in printed


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_script_with_status_75_whenever_it_comes(tmp_path, number, seconds):
    command = [sys.executable, str(EXPERIMENTS / "train_voc.py"), "quickstart"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=60)
    assert process.returncode in (75, -number) if seconds < 1 else process.returncode == 75, told
    assert "Traceback" not in told
