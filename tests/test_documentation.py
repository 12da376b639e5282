"""What the pages name exists, and their commands can be typed."""

import ast
import contextlib
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from deeplab_jax import presets

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    REPOSITORY / "README.md",
    *sorted(REPOSITORY.glob("deeplab_jax/**/*.md")),
    *sorted(REPOSITORY.glob("experiments/**/*.md")),
]


def test_functions_that_the_tour_of_the_code_names_exist():
    names = re.findall(r"`((?:[a-z_]+\.)+\w+)`", (REPOSITORY / "deeplab_jax/README.md").read_text())
    assert len(names) > 30
    for name in names:
        module, attribute = f"deeplab_jax.{name}".rsplit(".", 1)
        try:
            assert hasattr(importlib.import_module(module), attribute), name
        except ModuleNotFoundError:
            pytest.fail(f"there is no {module}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_scripts_presets_and_files_that_a_page_names_exist(page):
    text = page.read_text()
    for script in re.findall(r"experiments/([\w/]+\.py)", text):
        assert (REPOSITORY / "experiments" / script).exists(), script
    for preset in re.findall(r"train_voc\.py ([a-z]\w+)", text):
        assert preset in presets.PRESETS, preset
    for link, _, anchor in re.findall(r"(?:\]\(|src=\")(?!http)([^)#\"]*)(#([^)\"]+))?[)\"]", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def anchors(page):
    """What links to a page's headings end in, on code hosts."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands():
    """The script and the words after it, of each whole command on a page or in a docstring."""
    pages = "\n".join(page.read_text() for page in PAGES)
    texts = re.findall(r"```bash\n(.*?)```", pages, re.S)
    scripts = sorted((REPOSITORY / "experiments").glob("*.py"))
    texts += [ast.get_docstring(ast.parse(script.read_text())) for script in scripts]
    for line in "\n".join(texts).replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            if re.match(r"\s*python experiments/\w+\.py (?!\.\.\.)", command):
                _, script, *words = shlex.split(command, comments=True)
                if "minimal" in script or words == ["--list-weights"]:  # these are no options
                    continue
                yield Path(script).stem, tuple(words)


@pytest.mark.parametrize("command", sorted(set(commands())), ids=lambda c: " ".join(c[1]))
def test_a_command_is_understood_by_its_script(command, monkeypatch):
    name, words = command
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments"))
    monkeypatch.setattr(sys, "argv", [name, *words])
    cli = importlib.import_module("cli")
    with pytest.raises(SystemExit, match="0") if "--help" in words else contextlib.nullcontext():
        if name == "train_voc":
            cli.parse_preset(presets.PRESETS, presets.DEFAULT_PRESET, "")
        else:
            cli.parse(importlib.import_module(name).Options, "")
