"""Who may import whom, read from the sources."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "deeplab_jax"

MAY_IMPORT = """
choices types ops storage metrics visualization figures paper tiling hosts:
interruption compilation:
crf: ops
models: ops crf
data predictions checkpoints: storage
losses: ops crf
optim: models
weights: ops models storage data
config: ops models
presets: config
train: models losses
evaluation: ops models train metrics tiling
receptive_field diagnosis: models
workdir: storage config train checkpoints visualization
segmenter: data models weights train optim config checkpoints evaluation visualization workdir
start: ops data models weights train losses metrics evaluation hosts config workdir segmenter
report sweeps: workdir
progress: storage workdir
__init__: models crf data metrics visualization evaluation segmenter
"""
"""Parts and the parts that each may import, all of them from lines above: no arrow points up."""

LEAVES = {"choices", "types"}
"""May be imported by every part."""

LINES = [line.partition(":")[::2] for line in MAY_IMPORT.split("\n")[1:-1]]
PARTS = [name for names, _ in LINES for name in names.split()]
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "experiments").rglob("*.py"))
OTHERWISE_NAMED = {"cv2": "opencv-python-headless", "pydensecrf": "pydensecrf2"}
"""Distributions of modules that need not be installed."""


@cache
def parsed(path):
    return ast.parse(path.read_text())


def imported(path):
    """Dotted names of every module a file imports, inside functions too."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def roots(path):
    return {name.split(".")[0] for name in imported(path)}


def part(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def known(name):
    """Parts that the files of a part import."""
    modules = set().union(*(imported(path) for path in SOURCES if part(path) == name))
    return {m.split(".")[1] for m in modules if m.startswith("deeplab_jax.")} - {name}


def test_each_part_imports_the_parts_of_its_line_and_leaves_which_have_lines_above():
    assert sorted(PARTS) == sorted({part(path) for path in SOURCES})
    above = set()
    for names, allowed in LINES:
        for name in names.split():
            assert known(name) - LEAVES <= set(allowed.split()) <= above, name
        above |= set(names.split())


def test_nobody_imports_experiments_and_only_they_import_tyro():
    for path in SOURCES:
        assert not {"experiments", "cli", "tyro"} & roots(path), path
    assert any("tyro" in roots(path) for path in SCRIPTS)


def requirements():
    """Names of the distributions that the package and its extras ask for."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    return {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines}


def normalised(name):
    return name.lower().replace("_", "-")


def test_every_package_imported_is_required_by_name():
    local = {path.stem for path in SCRIPTS} | {"deeplab_jax"}
    foreign = set().union(*map(roots, (*SOURCES, *SCRIPTS))) - sys.stdlib_module_names - local
    providers, wanted = metadata.packages_distributions(), requirements()
    for module in foreign:
        names = (*providers.get(module, []), OTHERWISE_NAMED.get(module, module))
        assert wanted & set(map(normalised, names)), module


def test_tensorflow_is_imported_by_no_module():
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.name != "torch.py"  # which needs torch
    ]
    program = f"""
import importlib, sys
for name in {modules}: importlib.import_module(name)
sys.exit("tensorflow" in {{name.split(".")[0] for name in sys.modules}})
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)
