"""What lies in a work folder: read again whatever happened to it, written nowhere else."""

import dataclasses
import os
from pathlib import Path

import cli
import pytest
import runs_with_faults as faults
from PIL import Image
from save_faults import full_disk

from deeplab_jax import start, workdir
from deeplab_jax.data import builders, images
from deeplab_jax.data.folders import Place
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import UserError

CONFIG = PRESETS["quickstart"]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written \(Is a directory\)"):
        workdir.append_metrics(tmp_path, {"step": 1})


def test_a_line_cut_off_by_a_full_disk_is_told_and_left_out(tmp_path):
    """As are lines that are not even text, which a disk may hold after the power went."""
    workdir.append_metrics(tmp_path, {"step": 1})
    with full_disk(20), pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
        workdir.append_metrics(tmp_path, {"step": 2})
    assert (tmp_path / "metrics.jsonl").stat().st_size == 20
    workdir.forget_metrics_after(tmp_path, 2)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\0\0\xff\xfe\n")
    workdir.append_metrics(tmp_path, {"step": 2})
    assert workdir.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    for step, score in ((1, float("nan")), (2, 0.25), (3, float("nan"))):
        workdir.append_metrics(tmp_path, {"step": step, "mean_iou": score})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert workdir.best_step(tmp_path) == 2


def test_going_on_with_another_version_of_a_library_is_told(tmp_path, capsys, monkeypatch):
    workdir.record_run(tmp_path, CONFIG, CONFIG, ("a", "b"))
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    monkeypatch.setattr(workdir.metadata, "version", lambda name: "99" if name == "jax" else "1")
    workdir.record_run(tmp_path, CONFIG, CONFIG, ("a", "b"))
    assert "goes on with jax 99 after" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["keep_checkpoints", "save_every", "log_every"])
def test_counts_that_would_lose_a_run_are_refused(name):
    with pytest.raises(UserError, match=f"{name} 0 must be at least 1"):
        start.resolve(dataclasses.replace(CONFIG, workdir=Path("nowhere"), **{name: 0}))


def test_postscript_is_not_run_whatever_its_name(tmp_path):
    """Pillow hands EPS to Ghostscript, a program."""
    path = tmp_path / "a.jpg"
    Image.new("RGB", (4, 4)).save(path, format="EPS")
    for read in (images.to_record, images.read):
        with pytest.raises(UserError, match="a.jpg is no picture"):
            read(path)


def test_a_full_disk_under_prepared_data_is_told_and_nothing_half_is_left(tmp_path):
    """ArrayRecord has its own words for it, which a limit on the size of files brings about."""
    root = faults.draw_data(tmp_path / "data")
    with full_disk(20_000), pytest.raises(UserError, match="is on a full disk"):
        builders.open_dataset(Place(root, tmp_path / "prepared"), ["train"])
    assert [p.name for p in tmp_path.glob("prepared/*/*")] == ["lock"]


def test_output_that_nobody_reads_is_dropped():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        output = cli.Output(stream)
        assert output.write("nobody\n") == len("nobody\n")
        output.flush()
        print("nobody", file=output, flush=True)
        assert output.fileno() == writer
