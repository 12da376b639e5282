"""Who may import whom, read from the sources."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "deeplab_jax"

# part: the parts it may import besides itself. Arrows point downward, siblings do not know each
# other; optim and weights stand on the network, whose names they share.
LEAVES = {"choices"}
"""Import nothing of ours, and every part may import them."""

MAY_IMPORT = {
    "choices": set(),
    "types": set(),
    "ops": {"types"},
    "models": {"types", "ops", "crf"},
    "crf": {"types", "ops"},
    "storage": set(),
    "data": {"types", "storage"},
    "metrics": {"types"},
    "visualization": {"types"},
    "figures": {"types"},
    "report": set(),
    "paper": {"choices"},
    "predictions": {"types", "storage"},
    "losses": {"types", "ops", "crf"},
    "optim": {"types", "models"},
    "weights": {"types", "ops", "models", "storage", "data"},
    "config": {"types", "ops", "models"},
    "presets": {"config"},
    "train": {"types", "ops", "models", "losses"},
    "tiling": {"types"},
    "evaluation": {"types", "ops", "models", "train", "metrics", "tiling"},
    "receptive_field": {"types", "models"},
    "diagnosis": {"types", "models"},
    "hosts": {"types"},
    "interruption": set(),
    "compilation": set(),
    "checkpoints": {"types", "storage"},
    "workdir": {"types", "storage", "config", "train", "checkpoints", "visualization"},
    "segmenter": {
        *("types", "data", "models", "weights", "train", "optim", "config", "checkpoints"),
        *("evaluation", "visualization", "workdir"),
    },
    "start": {
        *("types", "data", "models", "weights", "train", "losses", "config", "workdir"),
        "segmenter",
    },
    "setup": {
        *("types", "ops", "data", "models", "train", "losses", "metrics", "hosts", "config"),
        *("workdir", "segmenter", "start"),
    },
    "progress": {"workdir"},
    "sweeps": {"types", "workdir"},
    "__init__": {"models", "crf", "data", "metrics", "visualization", "evaluation", "segmenter"},
}
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "experiments").rglob("*.py"))
OPTIONAL = {
    "ipywidgets": "ipywidgets",
    "cv2": "opencv-python-headless",
    "jax2onnx": "jax2onnx",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "pillow_heif": "pillow-heif",
    "pydensecrf": "pydensecrf2",
    "tifffile": "tifffile",
    "torch": "torch",
}


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


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_each_part_imports_only_the_parts_below_it(name):
    known = {
        module.split(".")[1]
        for path in SOURCES
        if part(path) == name
        for module in imported(path)
        if module.startswith("deeplab_jax.")
    }
    assert known - {name} <= MAY_IMPORT[name] | (set() if name in LEAVES else LEAVES)


def test_every_part_of_the_package_is_in_the_table_of_imports():
    assert {part(path) for path in SOURCES} == set(MAY_IMPORT)


def test_only_the_rooms_of_a_run_know_the_config():
    knowing = {
        part(path)
        for path in SOURCES
        if any(name.startswith("deeplab_jax.config") for name in imported(path))
    }
    assert knowing == {"presets", "workdir", "segmenter", "start", "setup"}


def test_nobody_imports_experiments_and_only_they_import_tyro():
    for path in SOURCES:
        assert not {"experiments", "cli", "tyro"} & roots(path), path
    assert any("tyro" in roots(path) for path in SCRIPTS)


def test_pmap_is_called_in_exactly_one_function():
    calls = [
        (path.name, function.name)
        for path in (*SOURCES, *SCRIPTS)
        for function in ast.walk(parsed(path))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute | ast.Name)
        and "pmap" in (getattr(node, "attr", None), getattr(node, "id", None))
    ]
    assert calls == [("train.py", "on_devices")]


def requirements(extra=None):
    """Names of the distributions that the package, or one of its extras, asks for."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = extras[extra] if extra else [*project["dependencies"], *sum(extras.values(), [])]
    return {normalised(re.match(r"[\w.-]+", line)[0]) for line in lines}


def normalised(name):
    return name.lower().replace("_", "-")


def test_every_package_imported_is_required_by_name():
    local = {path.stem for path in SCRIPTS} | {"deeplab_jax"}
    foreign = set().union(*map(roots, (*SOURCES, *SCRIPTS))) - sys.stdlib_module_names - local
    providers = metadata.packages_distributions()
    wanted = requirements()
    unnamed = {
        module
        for module in foreign
        if not wanted
        & {normalised(d) for d in (*providers.get(module, []), OPTIONAL.get(module, ""))}
    }
    assert unnamed == set()


def test_tensorflow_is_required_by_no_extra():
    wanted = {name for name in requirements() if name.startswith(("tensorflow", "tf-"))}
    assert wanted == {"tensorflow-datasets"}


def test_the_tests_need_no_torch():
    assert "pytest" in requirements("test")
    assert "torch" not in requirements("test")
    assert "torch" in requirements("benchmark")


def test_tensorflow_is_imported_by_no_module():
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.name != "torch.py"  # which needs torch
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module(name)\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'tensorflow'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
