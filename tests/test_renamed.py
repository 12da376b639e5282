"""Names of version 0.1 in today's modules."""

import ast
import copy
import importlib
from pathlib import Path

import pytest

import deeplab_jax

PACKAGE = Path(deeplab_jax.__file__).parent


def tables():
    """(module, old name, new place or advice, whether it answers) of every call of `answering`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "answering":
                moved, *gone = map(ast.literal_eval, node.args[1:])
                yield from ((module, old, new, True) for old, new in moved.items())
                yield from ((module, old, new, False) for old, new in (gone or [{}])[0].items())


@pytest.mark.parametrize(("module", "old", "new"), [entry[:3] for entry in tables() if entry[3]])
def test_an_old_name_is_the_new_object_and_warns(module, old, new):
    home, _, name = new.rpartition(".")
    wanted = getattr(importlib.import_module(f"deeplab_jax.{home}"), name)
    with pytest.warns(DeprecationWarning, match=f"{old} is deeplab_jax.{new} since version 0.2"):
        found = getattr(importlib.import_module(module), old)
    assert found is wanted


def test_the_names_that_0_1_documented_are_among_them():
    answered = {(module.removeprefix("deeplab_jax."), old) for module, old, *_ in tables()}
    assert answered >= {
        ("config", "PRESETS"),
        ("hosts", "Share"),
        ("losses", "summed_cross_entropy"),
        ("models.conv", "Conv"),
        ("models.dots", "atrous_conv"),
        ("models.layers", "resize_bilinear"),
        ("models.pooling", "max_pool"),
        ("train", "with_crf"),
        ("weights.foreign", "read_keras"),
    }


@pytest.mark.parametrize(
    ("module", "old", "advice"), [entry[:3] for entry in tables() if not entry[3]]
)
def test_a_name_without_successor_says_what_to_use(module, old, advice):
    with pytest.raises(ImportError) as raised:
        exec(f"from {module} import {old}")
    assert str(raised.value) == f"{module}.{old} is gone since version 0.2; use {advice}"
    if "of experiments/" in advice:
        return
    home, _, name = advice.split("(")[0].split(",")[0].rpartition(".")
    assert callable(getattr(importlib.import_module(f"deeplab_jax.{home}"), name))


def test_a_name_that_never_was_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="'deeplab_jax.train' has no attribute 'trian'"):
        importlib.import_module("deeplab_jax.train").trian  # noqa: B018


@pytest.mark.parametrize(
    ("parts", "options", "fault"),
    [
        ((), {"num_classes": 5, "backbone": "vgg"}, "missing a required argument: 'trunk'"),
        ((21,), {}, "missing a required argument: 'head'"),
        ((), {}, "missing a required argument: 'trunk'"),
    ],
)
def test_a_network_built_by_the_options_of_0_1_names_the_functions_that_take_them(
    parts, options, fault
):
    with pytest.raises(TypeError) as raised:
        deeplab_jax.DeepLabV2(*parts, **options)
    message = str(raised.value)
    assert "use deeplab_jax.build(num_classes, backbone=...)" in message and fault in message


def test_a_network_can_still_be_copied_and_its_fields_replaced():
    network = deeplab_jax.build(5, scales=(1.0,))
    assert network.clone(scales=(1.0, 0.5)).scales == (1.0, 0.5)
    assert copy.deepcopy(network) == network
