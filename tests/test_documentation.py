"""What the pages name exists, their commands can be typed, and the notebooks run."""

import ast
import contextlib
import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import cli
import pytest
from runs_with_faults import run_script

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
                if "minimal" not in script:  # which has no options
                    yield Path(script).stem, tuple(words)


@pytest.mark.parametrize("command", sorted(set(commands())), ids=lambda c: " ".join(c[1]))
def test_a_command_is_understood_by_its_script(command, monkeypatch):
    name, words = command
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(SystemExit, match="0") if "--help" in words else contextlib.nullcontext():
        if name == "train_voc":
            cli.parse_preset(presets.PRESETS, presets.DEFAULT_PRESET, "")
        else:
            cli.parse(importlib.import_module(name).Options, "")


NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.py"))
QUICK = ("read_a_sweep",)


def cells(text):
    """(kind, source) of each cell of a text in py:percent form."""
    _, *parts = f"\n{text}".split("\n# %%")
    for part in parts:
        head, _, source = part.partition("\n")
        if head.strip() == "[markdown]":
            source = "\n".join(
                line.removeprefix("#").removeprefix(" ") for line in source.splitlines()
            )
            yield "markdown", source.strip()
        else:
            yield "code", source.replace("# %matplotlib", "%matplotlib").strip()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_text_with_small_outputs_of_all_cells_in_order(path):
    notebook = path.with_suffix(".ipynb")
    assert notebook.stat().st_size < 300_000
    found = json.loads(notebook.read_text())["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in found]
    assert texts == list(cells(path.read_text()))
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds and "error" not in kinds


def marked(path):
    return pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem)


@pytest.mark.parametrize("path", [*map(marked, NOTEBOOKS)])
def test_a_notebook_runs_from_top_to_bottom_on_data_it_draws(path, tmp_path):
    folder = tmp_path / "experiments" / "notebooks"  # without the reader's runs
    folder.mkdir(parents=True)
    (folder.parent / "results").symlink_to(path.parents[1] / "results")
    assert run_script(path, cwd=folder, MPLBACKEND="Agg")


def test_every_notebook_has_its_text():
    notebooks = NOTEBOOKS[0].parent.glob("*.ipynb")
    assert {path.stem for path in notebooks} == {path.stem for path in NOTEBOOKS}
