"""Runs the texts of the notebooks and commits their outputs, small enough for a repository.

    python tests/execute_notebooks.py                     # all of them
    python tests/execute_notebooks.py read_a_sweep

Pictures are scaled to WIDTH at most and reduced to COLORS colours. Needs the extra `notebooks`.
"""

import base64
import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parents[1] / "experiments" / "notebooks"
WIDTH, COLORS = 760, 64


def main(names: list[str]) -> None:
    import jupytext  # of the extra, which pytest must not ask for when it looks for doctests
    import nbclient
    import nbformat

    for path in sorted(FOLDER.glob("*.py")):
        if names and path.stem not in names:
            continue
        notebook = jupytext.read(path)
        notebook.metadata = {
            "jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        }
        notebook.nbformat, notebook.nbformat_minor = 4, 5
        resources = {"metadata": {"path": str(FOLDER)}}
        nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
        for number, cell in enumerate(notebook.cells):
            cell.id, cell.metadata = f"cell-{number}", {}
            if cell.cell_type == "code":  # what goes to stderr is of this machine
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
                for output in cell.outputs:
                    shrink(output)
        notebook.metadata.pop("language_info", None)
        notebook.metadata.pop("widgets", None)
        nbformat.write(notebook, path.with_suffix(".ipynb"))
        print(path.stem, f"{path.with_suffix('.ipynb').stat().st_size / 1e3:.0f} kB")


def shrink(output: dict[str, Any]) -> None:
    """A picture at its final size; a view of a widget, which needs a kernel, is left out."""
    data = output.get("data", {})
    data.pop("application/vnd.jupyter.widget-view+json", None)
    if "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        picture.thumbnail((WIDTH, 10 * WIDTH))
        buffer = io.BytesIO()
        picture.quantize(COLORS).save(buffer, "PNG", optimize=True)
        data["image/png"] = base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    main(sys.argv[1:])
