"""What users type, and what the scripts make of it."""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import cli  # noqa: E402
import options  # noqa: E402
import usage  # noqa: E402

from deeplab_jax.config import Config  # noqa: E402
from deeplab_jax.errors import UserError  # noqa: E402
from deeplab_jax.presets import PRESETS  # noqa: E402


@pytest.mark.parametrize(
    ("typed", "understood"),
    [
        ("--remat", "--remat"),
        ("--remat True", "--remat"),
        ("--remat False", "--no-remat"),
        ("--remat=False", "--no-remat"),
        ("--data.mirror False", "--data.no-mirror"),
        ("--data.no-mirror", "--data.no-mirror"),
        ("--no-mirror", "--data.no-mirror"),
        ("--root x", "--data.root x"),
        ("--learning_rate 3", "--optim.learning-rate 3"),
        ("--num-steps 5", "--num-steps 5"),
    ],
)
def test_options_are_read_under_their_whole_names(typed, understood):
    assert options.canonical(Config, typed.split()) == understood.split()


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("--lr 3", "--optim.learning-rate"),
        ("--epochs 3", "--num-steps, each of --batch-size"),
        ("--batch 3", "--batch-size"),
        ("--optim.batch-size 3", "it is --batch-size here"),
        ("--num-stepz 3", "did you mean --num-steps"),
        ("--scales 1", "--model.scales or --eval.scales: say which"),
        ("--resume", "goes on where it was"),
        ("--remat=3", "takes no value"),
    ],
)
def test_an_option_of_another_tool_is_answered_with_ours(typed, answer):
    with pytest.raises(UserError, match=answer):
        options.canonical(Config, typed.split())


def test_every_answer_names_options_that_exist():
    known = options.options_of(Config)
    elsewhere = {"num-photographs", "root", "output", "crf", "flip", "tile"}
    assert set(options.CALLED) - set(known) <= elsewhere
    assert not any(options.positive(name) != name for name in known)  # none begins with no-


def test_a_flag_that_is_switched_off_counts_as_typed():
    assert options.typed_fields(["--data.no-mirror", "--no-remat"]) == {"data.mirror", "remat"}


def test_a_preset_may_follow_help():
    assert cli.take_preset(["--help", "small"], "voc") == ("small", ["--help"])
    assert cli.take_preset(["small", "--help"], "voc") == ("small", ["--help"])
    assert cli.take_preset(["--num-steps", "3"], "voc") == ("voc", ["--num-steps", "3"])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits_the_terminal_and_begins_with_what_people_use(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    page = usage.page(
        Config, PRESETS["small"], script="train_voc.py", description="Words.", first=usage.FIRST
    )
    lines = page.splitlines()
    assert max(map(len, lines)) <= width
    assert len(usage.FIRST) == 20 and set(usage.FIRST) <= set(options.options_of(Config))
    first, rest = page.index("Most used"), page.index("\nNetwork")
    assert all(first < page.index(f"--{name}") < rest for name in usage.FIRST)
    assert page.count("--num-steps INT") == 1 and "(default: 3200)" in page


def test_every_option_has_its_line_in_the_help():
    page = usage.page(Config, Config(), script="x", description="", first=())
    assert all(f"--{name}" in page for name in options.options_of(Config))
    told = dict(usage.descriptions(Config))
    assert told["batch-size"].startswith("Photographs")
    assert set(told) == set(options.options_of(Config)), dataclasses.fields(Config)
