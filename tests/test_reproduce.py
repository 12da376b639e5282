"""reproduce.py: its plan, what rows start from, and a table on a miniature of VOC 2012 and SBD."""

import importlib
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from scipy.io import savemat

from deeplab_jax import paper
from deeplab_jax.types import UserError

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SMALL = (
    "--model.width 1 --model.head-width 4 --num-steps 2 --batch-size 2 --data.crop-size 33 "
    "--save-every 1 --log-every 1 --eval.pad-to 41"
).split()


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("reproduce")


@pytest.fixture
def voc(tmp_path):
    """Two photographs of VOC and one of SBD alone, all with two classes."""
    root = tmp_path / "voc"
    devkit, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset/cls"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (devkit / name).mkdir(parents=True)
    sbd.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.zeros((30, 40), np.uint8)
    labels[8:20, 10:30] = 15
    for name, split in (("a", "train"), ("b", "val"), ("c", None)):
        picture = PILImage.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
        picture.save(devkit / "JPEGImages" / f"{name}.jpg")
        savemat(sbd / f"{name}.mat", {"GTcls": {"Segmentation": labels}})
        if split:
            (devkit / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"{name}\n")
            PILImage.fromarray(labels).save(devkit / "SegmentationClass" / f"{name}.png")
    return root


def test_the_plan_tells_runs_commands_and_disk(reproduce, voc):
    options = reproduce.Options("table3", voc, timed=False, dry_run=True)
    rows = reproduce.wanted_rows(options)
    jobs = {(row.label, 0): reproduce.make_job(row, 0, options, Path("out"), ()) for row in rows}
    text = "\n".join(reproduce.plan(options, rows, jobs))
    assert "download" not in text  # it is there
    assert "table3_aspp_l, seed 0: 20,000 updates of 10" in text
    assert text.count("train_voc.py table3_") == 3
    assert text.count("--crf-normalization per_pixel") == 6  # the search, and the score
    assert "disk: about" in text
    missing = replace(options, root=voc / "elsewhere")
    assert "download VOC 2012 and SBD" in "\n".join(reproduce.plan(missing, rows, jobs))


def test_updates_are_timed_on_this_machine(reproduce):
    reproduced = reproduce.Options("table3", Path("x"))
    job = reproduce.make_job(paper.rows("3")[0], 0, reproduced, Path("out"), tuple(SMALL))
    config = reproduce.config_of(job)
    assert config.num_steps == 2
    assert 0 < reproduce.seconds_an_update(config) < 60


def test_rows_from_coco_need_its_weights(reproduce):
    rows = reproduce.wanted_rows(reproduce.Options("table4", Path("x")))
    assert [row.label for row in rows] == ["ResNet-101", "MSC"]
    rows = reproduce.wanted_rows(reproduce.Options("table4", Path("x"), coco="init.caffemodel"))
    assert len(rows) == 6
    with pytest.raises(UserError, match="test_resnet starts from weights of MS-COCO"):
        reproduce.wanted_rows(reproduce.Options("test_resnet", Path("x")))


def test_the_second_stage_starts_from_the_run_of_the_first_and_waits_for_it(reproduce):
    options = reproduce.Options("test_vgg", Path("x"), seeds=(3,))
    rows = reproduce.wanted_rows(options)
    first, second = (reproduce.make_job(row, 3, options, Path("out"), ()) for row in rows)
    words = second.commands[0]
    assert words[words.index("--weights") + 1] == str(first.folder)
    assert [len(stage) for stage in reproduce.stages(options, rows)] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "own", "wanted"),
    [
        ("table3", "--vgg none --num-photographs 1", ["LargeFOV", "ASPP-S", "ASPP-L"]),
        (
            "table4",
            "--resnet none --coco none --num-photographs 1",
            [
                *("ResNet-101", "MSC", "MSC, COCO", "MSC, COCO, Aug"),
                *("MSC, COCO, Aug, LargeFOV", "MSC, COCO, Aug, ASPP"),
            ],
        ),
    ],
)
def test_a_table_is_made_by_a_command_that_is_killed_and_typed_again(
    voc, tmp_path, table, own, wanted
):
    out = tmp_path / "out"
    words = [table, "--root", voc, *own.split(), "--output", out]
    shallow = "--model.stage-sizes 1 1 1 1 --model.norm trained".split() * (table == "table4")
    command = [sys.executable, EXPERIMENTS / "reproduce.py", *words, "--", *SMALL, *shallow]
    command = list(map(str, command))
    killed = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    while killed.poll() is None and not list(out.glob("*/checkpoints/1")):
        time.sleep(0.2)
    killed.kill()
    killed.wait()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (out / f"{table}.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == [f"| {name}" for name in wanted]
    for row in rows:
        assert (row[1], row[3]) == ("", "")  # three photographs from scratch are not the paper's
        assert float(row[2]) >= 0
    after = [row[4].strip("| ") for row in rows]
    assert all(float(score) >= 0 for score in after if score)
    # Of Table 4 only the last row has a CRF.
    assert [score != "" for score in after] == [
        table == "table3" or i == 5 for i in range(len(after))
    ]
    assert f"{wanted[-1]}: not beside the paper: the data are others" in text
    assert len(list(out.glob("*_seed0/report.html"))) == len(wanted)
