"""A run of an earlier version goes on, is evaluated, and is loaded.

`data/run_c8a2e64.tar.xz` was made by the code of commit c8a2e64: photographs, masks, and the work
folder of this command after update 2 of 4. `after_4.npz` holds the weights that commit had in the
end.
"""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from deeplab_jax import runs
from deeplab_jax.config import VERSION, Request, translate
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import UserError
from deeplab_jax.weights import files

TESTS = Path(__file__).parent
TYPED = (
    "small --data.root data --workdir run --model.stage-sizes 1 1 1 1 --model.width 1 "
    "--model.aspp-rates 1 2 --data.crop-size 33 --num-steps 4 --save-every 2 --batch-size 2 "
    "--log-every 1 --class-balance 0"
).split()


def script(name, *arguments, cwd):
    command = [sys.executable, str(TESTS.parent / "experiments" / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(TESTS / "data" / "run_c8a2e64.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_an_old_run_is_loaded_with_its_options(old):
    config, class_names = runs.read_config(old / "run")
    assert class_names == ("ground", "square", "corner")
    assert (config.model.width, config.model.alignment, config.max_per_device) == (
        1,
        "half_pixel",
        8,
    )
    segmenter = runs.load(old / "run")
    image = np.zeros((40, 50, 3), np.uint8)
    assert segmenter.predict(image).shape == (40, 50, 3)
    assert segmenter.meta["step"] == 2


def test_the_same_command_goes_on_with_an_old_run_to_the_same_weights(old, tmp_path):
    shutil.copytree(old, tmp_path, dirs_exist_ok=True)
    out = script("train_voc.py", *TYPED, cwd=tmp_path)
    assert "going on in run after update 2" in out
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert (record["version"], record["preset"]) == (VERSION, "small")
    found = files.flatten(runs.load(tmp_path / "run").variables)
    with np.load(old / "after_4.npz") as expected:
        assert found.keys() == set(expected)
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)
    script("evaluate_voc.py", "run", cwd=tmp_path)
    score = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert score["network"]["mean_iou"] == pytest.approx(0.27322, abs=0.02)


def test_only_what_is_typed_may_conflict_with_a_run(tmp_path):
    """A default that has changed since leaves a run as it is; an option typed does not."""
    begun = PRESETS["quickstart"]
    begun = runs.replace(begun, workdir=tmp_path, num_steps=7)
    described = {"photographs": "one", "accumulation": 1, "decoder": "some"}
    runs.record_config(tmp_path, begun, "quickstart", ("a", "b"), **described)
    today = runs.replace(PRESETS["quickstart"], workdir=tmp_path)
    assert runs.continued(Request(today, "quickstart")).num_steps == 7
    typed = Request(today, "quickstart", frozenset({"num_steps"}))
    with pytest.raises(UserError, match="holds a run with num_steps 7, and 220 was asked for"):
        runs.record_config(tmp_path, runs.continued(typed), "quickstart", ("a", "b"), **described)
    other = runs.continued(Request(runs.replace(PRESETS["small"], workdir=tmp_path), "small"))
    with pytest.raises(UserError, match="holds a run with"):
        runs.record_config(tmp_path, other, "small", ("a", "b"), **described)


def test_options_that_are_gone_are_left_out_of_an_old_record():
    values = {"formulation": "dots", "num_steps": 4}
    assert translate(values, 1) == {"num_steps": 4, "data": {"exact_padding": False}}


def test_a_run_of_a_newer_version_is_refused_in_a_sentence(old, tmp_path):
    record = json.loads((old / "run/config.json").read_text()) | {"version": VERSION + 1}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="is of version .* install a newer deeplab_jax"):
        runs.read_config(tmp_path)
