"""The notebooks run from top to bottom, and are what their texts say."""

import importlib.util
import json
from pathlib import Path

import pytest
from runs_with_faults import run_script

NOTEBOOKS = sorted((Path(__file__).parents[1] / "experiments" / "notebooks").glob("*.py"))
QUICK = ("read_a_sweep",)


def cells(text):
    """(kind, source) of each cell of a text in py:percent form; its header is none."""
    _, *parts = text.split("\n# %%")
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
    marks = [] if path.stem in QUICK else [pytest.mark.slow]
    if path.stem == "crf_sliders" and importlib.util.find_spec("ipywidgets") is None:
        marks.append(pytest.mark.skip(reason="needs ipywidgets, of the extra notebooks"))
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.parametrize("path", [marked(path) for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom_on_data_it_draws(path, tmp_path):
    folder = tmp_path / "experiments" / "notebooks"  # without the reader's runs
    folder.mkdir(parents=True)
    (folder.parent / "results").symlink_to(path.parents[1] / "results")
    assert run_script(path, cwd=folder, MPLBACKEND="Agg")


def test_every_notebook_has_its_text():
    stems = {path.stem for path in NOTEBOOKS}
    assert {path.stem for path in NOTEBOOKS[0].parent.glob("*.ipynb")} == stems
    assert len(stems) == 6
