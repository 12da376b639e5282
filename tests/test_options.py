"""What users type, and what the scripts make of it."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import cli  # noqa: E402
import options  # noqa: E402
import usage  # noqa: E402

from deeplab_jax.config import Config  # noqa: E402
from deeplab_jax.presets import PRESETS  # noqa: E402
from deeplab_jax.types import UserError  # noqa: E402


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


def test_options_of_a_group_without_a_name_have_no_prefix():
    @dataclasses.dataclass(frozen=True)
    class Wrapped:
        config: Annotated[Config, tyro.conf.arg(name="")] = Config()
        limit: float = 600.0

    typed = ["--model.dtype", "bfloat16", "--limit", "3"]
    assert options.canonical(Wrapped, typed) == typed


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


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("--num-steps abc", "--num-steps takes a whole number, and 'abc' was given"),
        ("--num-steps=1.5", "--num-steps takes a whole number, and '1.5' was given"),
        ("--num-steps", "--num-steps takes a whole number, and nothing was given"),
        ("--num-steps --remat", "--num-steps takes a whole number, and nothing was given"),
        ("--learning-rate fast", "--optim.learning-rate takes a number, and 'fast' was given"),
        ("--model.scales 1.0 half", "--model.scales takes numbers, and 'half' was given"),
        (
            "--model.norm frosen",
            "none, frozen or trained, and 'frosen' was given; did you mean",
        ),
        ("--eval.tile none", "--eval.tile takes a whole number, and 'none' was given"),
        ("small", "'small' belongs to no option"),
        ("--num-steps 5 6", "'6' belongs to no option"),
    ],
)
def test_a_wrong_value_is_answered_with_what_the_option_takes(typed, answer):
    with pytest.raises(UserError) as raised:
        options.canonical(Config, typed.split())
    assert answer in str(raised.value)


@pytest.mark.parametrize(
    "typed",
    ["--eval.tile None --data.range -5 1e3", "--seed=3 --model.scales", "--batch-loss None"],
)
def test_values_that_tyro_reads_are_accepted(typed):
    words = options.canonical(Config, typed.split())
    assert cli.read_config(PRESETS["small"], words)


@dataclasses.dataclass
class Script:
    source: Annotated[str, tyro.conf.Positional]
    size: tuple[int, int] | None = None
    paths: Annotated[tuple[str, ...], tyro.conf.Positional] = ()


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("", "SOURCE is missing"),
        ("--size 3 4", "SOURCE is missing"),
        ("run --size 3", "--size takes 2 whole numbers, and 1 was given"),
        ("--size 3 4 run one two", None),
        ("run one two --size None", None),
    ],
)
def test_arguments_without_names_are_counted(typed, answer):
    if answer is None:
        assert options.canonical(Script, typed.split()) == typed.split()
        return
    with pytest.raises(UserError, match=answer):
        options.canonical(Script, typed.split())


def test_a_wrong_value_ends_a_script_with_a_sentence_and_status_2():
    script = Path(cli.__file__).parent / "export_model.py"
    done = subprocess.run(
        [sys.executable, str(script), "run", "a.onnx", "--size", "x", "5"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "error: --size takes 2 whole numbers, and 'x' was given; see --help\n"
