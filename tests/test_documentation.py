"""What the pages name exists."""

import importlib
import re
from pathlib import Path

import pytest

from deeplab_jax import config as configs

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
        assert preset in configs.PRESETS, preset
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
