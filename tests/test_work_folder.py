"""What lies in a work folder: read again whatever happened to it, written nowhere else."""

import dataclasses
import io
import os
import resource
import sys
from pathlib import Path

import pytest
import runs_with_faults as faults
from PIL import Image

from deeplab_jax import runs
from deeplab_jax.config import check
from deeplab_jax.data import builders, images
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import UserError

CONFIG = PRESETS["quickstart"]


def record_config(workdir, **changes):
    options = {"photographs": "one", "accumulation": 1, "decoder": "some"} | changes
    runs.record_config(workdir, CONFIG, "quickstart", ("ground", "thing"), **options)


@pytest.fixture(scope="module")
def cli():
    """The module beside the scripts."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
    import cli

    return cli


@pytest.mark.parametrize(
    "name", ["lock", "metrics.jsonl", "checkpoints", "tensorboard", "checkpoints/4"]
)
def test_a_link_out_of_the_work_folder_is_refused_and_its_end_untouched(tmp_path, name):
    (outside := tmp_path / "outside").write_text("precious")
    workdir = tmp_path / "run"
    (workdir / name).parent.mkdir(parents=True)
    (workdir / name).symlink_to(outside)
    with pytest.raises(UserError, match=f"{name} leads out of the work folder"):
        runs.hold(workdir)
    assert outside.read_text() == "precious"


def test_links_that_no_run_writes_through_are_accepted(tmp_path):
    """The work folder itself, links inside of it, and folders that are not the run's."""
    (disk := tmp_path / "disk").mkdir()
    (workdir := tmp_path / "run").symlink_to(disk)
    (workdir / "photographs").symlink_to(tmp_path)
    (workdir / "metrics.jsonl").touch()
    (workdir / "latest").symlink_to(disk / "metrics.jsonl")
    runs.hold(workdir).close()


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written \(Is a directory\)"):
        runs.append_metrics(tmp_path, {"step": 1})


def test_a_line_cut_off_by_a_full_disk_is_told_and_left_out(tmp_path):
    runs.append_metrics(tmp_path, {"step": 1})
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, unlimited[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
            runs.append_metrics(tmp_path, {"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (tmp_path / "metrics.jsonl").stat().st_size == 20
    runs.forget_metrics_after(tmp_path, 2)
    runs.append_metrics(tmp_path, {"step": 2})
    assert runs.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_lines_that_are_not_even_text_are_left_out(tmp_path):
    """What a disk may hold after the power went."""
    runs.append_metrics(tmp_path, {"step": 1})
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\0\0\xff\xfe\n")
    runs.append_metrics(tmp_path, {"step": 2})
    assert runs.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    for step, score in ((1, float("nan")), (2, 0.25), (3, float("nan"))):
        runs.append_metrics(tmp_path, {"step": step, "mean_iou": score})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert runs.best_step(tmp_path) == 2


def test_a_run_goes_on_with_its_own_photographs_only(tmp_path):
    record_config(tmp_path)
    record_config(tmp_path)
    with pytest.raises(UserError, match="photographs .* of the fingerprint one, and two was asked"):
        record_config(tmp_path, photographs="two")


def test_going_on_with_another_decoder_is_told(tmp_path, capsys):
    record_config(tmp_path)
    assert capsys.readouterr().err == ""
    record_config(tmp_path, decoder="another")
    assert "goes on with decoder another after some" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["keep_checkpoints", "save_every", "log_every", "max_skipped"])
def test_counts_that_would_lose_a_run_are_refused(name):
    with pytest.raises(UserError, match=f"{name} 0 must be at least 1"):
        check(dataclasses.replace(CONFIG, **{name: 0}))


def test_postscript_is_not_run_whatever_its_name(tmp_path):
    """Pillow hands EPS to Ghostscript, a program."""
    path, buffer = tmp_path / "a.jpg", io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, format="EPS")
    path.write_bytes(buffer.getvalue())
    assert Image.open(path).format == "EPS"
    with pytest.raises(UserError, match="a.jpg is no picture"):
        images.to_record(path)
    with pytest.raises(UserError, match="a.jpg is no picture"):
        images.read(path)


def test_a_full_disk_under_prepared_data_is_told_and_nothing_half_is_left(tmp_path):
    """ArrayRecord has its own words for it, which a limit on the size of files brings about."""
    root = faults.draw_data(tmp_path / "data")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        with pytest.raises(UserError, match="is on a full disk"):
            builders.open_dataset(root, prepared_dir=tmp_path / "prepared", splits=["train"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert [p.name for p in tmp_path.glob("prepared/*/*")] == ["lock"]


def test_output_that_nobody_reads_is_dropped(cli):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1) as stream:
        output = cli.Output(stream)
        assert output.write("nobody\n") == len("nobody\n")
        output.flush()
        print("nobody", file=output, flush=True)
        assert output.fileno() == writer
