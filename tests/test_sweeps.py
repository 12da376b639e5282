"""Many processes from one: what runs, what is left out, what a failure or a kill does."""

import csv
import json
import os
import signal
import statistics
import subprocess
import sys

import pytest
from runs_with_faults import is_alive, wait_until

from deeplab_jax import sweeps
from deeplab_jax.types import UserError

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def job(folder, *programs, text="done"):
    """Python programs, run one after another; the last one writes result.txt."""
    last = (sys.executable, "-c", WRITE, str(folder / "result.txt"), text)
    commands = [(sys.executable, "-c", program) for program in programs]
    return sweeps.Job(folder, (*commands, last), "result.txt")


def run(*jobs, slots=({},), **options):
    said = []
    return sweeps.run(jobs, slots, say=said.append, **options), said


def test_commands_of_a_job_run_in_order_and_once(tmp_path):
    folder = tmp_path / "a"
    failed, said = run(job(folder, "print('first')", "print('second')"))
    assert failed == {}
    assert (folder / "result.txt").read_text() == "done"
    log = (folder / "log.txt").read_text()
    assert log.index("first\n") < log.index("second\n")
    assert said[0] == f"run 1 of 1, {folder}:"
    assert said[1] == """python -c 'print('"'"'first'"'"')'"""  # to be pasted
    assert "finished after" in said[-1]
    (folder / "result.txt").write_text("mine")
    _, said = run(job(folder, "print('first')", "print('second')"))
    assert (folder / "result.txt").read_text() == "mine"
    assert len(said) == 1 and "found finished" in said[0]


def test_a_failure_is_reported_with_its_last_line_stops_no_other_and_is_tried_again(tmp_path):
    program = (
        "import os, sys; print('error: no such data'); "
        f"sys.exit(0 if os.path.exists({str(tmp_path / 'mended')!r}) else 2)"
    )
    bad = job(tmp_path / "bad", program)
    failed, said = run(bad, job(tmp_path / "good"))
    assert failed == {tmp_path / "bad": "error: no such data (exit status 2)"}
    assert not bad.finished
    assert (tmp_path / "good/result.txt").exists()
    assert any("failed" in line and "no such data" in line for line in said)
    (tmp_path / "mended").touch()
    assert run(bad)[0] == {}


def test_a_folder_of_another_command_is_refused(tmp_path):
    run(job(tmp_path / "a", "print(1)"))
    failed, _ = run(job(tmp_path / "a", "print(2)"))
    assert "another command, python -c 'print(1)'; give another --output" in str(failed)


def test_another_scoring_of_a_finished_run_is_carried_out(tmp_path):
    """The sweep was typed without the CRF before, or with other parameters of it."""
    folder = tmp_path / "a"
    run(job(folder, "print('training')", text="before"), device="first")
    for ending in ("finished after", "found finished"):
        _, said = run(job(folder, "print('training')", text="after"))
        assert ending in said[-1]
        assert (folder / "result.txt").read_text() == "after"
    assert json.loads((folder / "entry.json").read_text())["device"] == "first"  # it has trained


def test_jobs_run_at_once_each_with_the_environment_of_its_slot(tmp_path):
    # Each waits for the other, so neither ends alone.
    program = (
        "import os, pathlib, time\n"
        "mine = int(os.environ['PLACE'])\n"
        f"root = pathlib.Path({str(tmp_path)!r})\n"
        "(root / f'here{mine}').touch()\n"
        "while not (root / f'here{1 - mine}').exists(): time.sleep(0.01)\n"
    )
    slots = [{"PLACE": "0"}, {"PLACE": "1"}]
    failed, said = run(*(job(tmp_path / name, program) for name in "ab"), slots=slots)
    assert failed == {}
    assert {line.split()[0] for line in said if "python" in line} == {"PLACE=0", "PLACE=1"}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_children_die_with_a_sweep_that_is_killed(tmp_path):
    pid = tmp_path / "pid"
    write = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"
    program = f"""
import pathlib, sys
from deeplab_jax import sweeps
commands = ((sys.executable, "-c", {write + "; time.sleep(600)"!r}),)
sweeps.run([sweeps.Job(pathlib.Path({str(tmp_path / "a")!r}), commands, "result.txt")], [{{}}])
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    wait_until(lambda: pid.exists() and pid.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not is_alive(int(pid.read_text())))


def test_a_job_waits_for_the_process_that_is_still_in_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    folder.mkdir()
    held = (
        "import pathlib, sys, time; from deeplab_jax import workdir\n"
        f"with workdir.hold(pathlib.Path({str(folder)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
        f"    pathlib.Path({str(folder / 'result.txt')!r}).write_text('theirs')"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    assert sweeps.is_held(folder)
    monkeypatch.setattr(sweeps.time, "sleep", lambda _: (other.stdin.close(), other.wait()))
    failed, said = run(job(folder))
    assert failed == {}
    assert (folder / "result.txt").read_text() == "theirs"
    assert "found finished" in said[-1]


def test_slots_are_the_devices_that_a_process_may_see(monkeypatch):
    """A machine without accelerator is one slot, or as many as are asked for."""
    probed = subprocess.CompletedProcess([], 0, stdout="cpu|8|cpu\n")
    monkeypatch.setattr(sweeps.subprocess, "run", lambda *_, **__: probed)
    assert sweeps.find_devices() == (f"CPU, {os.cpu_count()} cores", [{}])
    assert sweeps.find_devices(3)[1] == [{}, {}, {}]
    probed.stdout = "cuda|2|NVIDIA H100\n"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    places = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert sweeps.find_devices() == ("NVIDIA H100", places)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert sweeps.slot_of("cuda", 1) == {"CUDA_VISIBLE_DEVICES": "6"}
    assert sweeps.slot_of("tpu", 3)["TPU_VISIBLE_CHIPS"] == "3"
    probed.returncode, probed.stderr = 1, "Traceback\nRuntimeError: no TPU\n"
    with pytest.raises(UserError, match="no device here: RuntimeError: no TPU"):
        sweeps.find_devices()


def test_a_folder_that_cannot_be_made_fails_alone_and_runs_are_numbered(tmp_path):
    (tmp_path / "file").write_text("")
    failed, said = run(job(tmp_path / "file/a"), job(tmp_path / "b"), job(tmp_path / "c"))
    assert failed == {tmp_path / "file/a": "the folder cannot be used: Not a directory"}
    assert (tmp_path / "b/result.txt").exists()
    assert any(f"run 2 of 3, {tmp_path / 'b'}: finished after" in line for line in said)
    assert any("all done in about" in line for line in said)  # after the second, of the third
    assert said[-1].startswith(f"run 3 of 3, {tmp_path / 'c'}: finished after")


def result(row, seed, before, after=None, *, rates="2, 4"):
    numbers = (1234567, 10.0, 60.0, before, after)
    return sweeps.Result(row, seed, *numbers, "python x", "CPU", {"rates": rates})


SWEEP = [
    result("narrow", 0, 0.50, 0.51),
    result("narrow", 1, 0.54, 0.52),
    result("wide", 0, 0.60, 0.61, rates="24†"),
    result("wide", 1, 0.59, 0.53, rates="24†"),
    result("odd", 0, 0.50, 0.51),
]


def cells(results, published=None):
    lines = sweeps.markdown(results, published=published or {}).splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_table_has_mean_and_deviation_over_seeds_of_each_label_beside_published_numbers():
    narrow, wide, odd = cells(SWEEP)
    assert narrow["mean IoU %"] == f"52.00 ± {100 * statistics.stdev([0.50, 0.54]):.2f}"
    assert wide["mean IoU after CRF %"] == f"57.00 ± {100 * statistics.stdev([0.61, 0.53]):.2f}"
    assert (narrow["seeds"], odd["seeds"]) == ("2", "1")
    assert odd["mean IoU %"] == "50.00"  # one seed has no deviation
    assert (wide["rates"], wide["parameters"]) == ("24†", "1,234,567")
    assert wide["images/s in training"] == "10"
    assert "paper %" not in narrow
    shown, other, _ = cells(SWEEP, {"narrow": (65.76, None)})
    assert (shown["paper %"], other["paper %"]) == ("65.76", "")
    assert "paper after CRF %" not in shown
    mixed = [result("a", 0, 0.5), result("a", 1, 0.5, rates="3")]
    assert cells(mixed)[0]["rates"] == "2, 4 or 3"
    assert "mean IoU after CRF %" not in cells(mixed)[0]
    (fast,) = cells([result("a", 0, 0.5)._replace(training_images_per_second=3712.3)])
    assert fast["images/s in training"] == "3,712"


def test_a_difference_counts_when_it_exceeds_what_the_seeds_make():
    said = sweeps.comparisons(SWEEP)
    spread = "the spread of the seeds"
    assert f"wide against narrow, before CRF: +7.50 points, more than {spread} (4.00)." in said
    # Every seed is better, and yet one of them by chance.
    assert f"wide against narrow, after CRF: +5.50 points, within {spread} (8.00)." in said
    assert "odd against wide, before CRF: -9.50 points, of one seed, which tells no spread." in said
    assert any("odd against narrow" in line for line in said)
    one_seed = sweeps.comparisons(SWEEP[:1] + SWEEP[-1:])
    assert one_seed == ["one seed a row: what seeds alone would change is not known"]
    found = sweeps.compare([0.50, 0.54], [0.53, 0.6])
    assert found == f"+4.50 points, within {spread} (7.00)"


def test_a_csv_file_holds_the_numbers_of_the_runs(tmp_path):
    sweeps.write_csv(tmp_path / "runs.csv", SWEEP)
    with (tmp_path / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert [(r["row"], r["seed"], float(r["mean_iou"])) for r in runs] == [
        (r.row, str(r.seed), r.mean_iou) for r in SWEEP
    ]
    assert runs[2]["rates"] == "24"  # a number for whoever reads the file
    assert runs[0]["mean_iou_after_crf"] == "0.51"
