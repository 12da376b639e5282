"""Many processes from one: what runs, what is left out, what a failure or a kill does."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from deeplab_jax import sweeps
from deeplab_jax.types import UserError

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


def job(folder, *programs):
    """Python programs, run one after another; the last one writes result.txt."""
    commands = [(sys.executable, "-c", program) for program in programs]
    result = str(folder / "result.txt")
    return sweeps.Job(
        folder, (*commands, (sys.executable, "-c", WRITE, result, "done")), "result.txt"
    )


def run(jobs, slots=({},)):
    said = []
    failed = sweeps.run(jobs, slots, say=lambda text, **_: said.append(text))
    return failed, said


def test_commands_of_a_job_run_in_order_and_their_output_is_kept(tmp_path):
    folder = tmp_path / "a"
    failed, said = run([job(folder, "print('first')", "print('second')")])
    assert failed == {}
    assert (folder / "result.txt").read_text() == "done"
    log = (folder / "log.txt").read_text()
    assert log.index("first\n") < log.index("second\n")
    assert said[0] == f"run 1 of 1, {folder}:"
    assert said[1] == """python -c 'print('"'"'first'"'"')'"""  # to be pasted
    assert "finished after" in said[-1]


def test_a_finished_job_is_not_run_again(tmp_path):
    folder = tmp_path / "a"
    run([job(folder)])
    (folder / "result.txt").write_text("mine")
    _, said = run([job(folder)])
    assert (folder / "result.txt").read_text() == "mine"
    assert len(said) == 1 and "found finished" in said[0]


def test_a_failure_is_reported_with_its_last_line_and_stops_no_other(tmp_path):
    bad = job(tmp_path / "bad", "import sys; print('error: no such data'); sys.exit(2)")
    failed, said = run([bad, job(tmp_path / "good")])
    assert failed == {tmp_path / "bad": "error: no such data (exit status 2)"}
    assert not bad.finished
    assert (tmp_path / "good/result.txt").exists()
    assert any("failed" in line and "no such data" in line for line in said)


def test_a_job_that_failed_is_tried_again(tmp_path):
    program = f"import os, sys; sys.exit(not os.path.exists({str(tmp_path / 'mended')!r}))"
    assert run([job(tmp_path / "a", program)])[0]
    (tmp_path / "mended").touch()
    assert run([job(tmp_path / "a", program)])[0] == {}


def test_a_folder_of_another_command_is_refused(tmp_path):
    run([job(tmp_path / "a", "print(1)")])
    failed, _ = run([job(tmp_path / "a", "print(2)")])
    assert "another command, python -c 'print(1)'; give another --output" in str(failed)


def test_another_scoring_of_a_finished_run_is_carried_out(tmp_path):
    """The sweep was typed without the CRF before, or with other parameters of it."""
    folder = tmp_path / "a"
    train = (sys.executable, "-c", "print('training')")

    def scored(text):
        score = (sys.executable, "-c", WRITE, str(folder / "result.txt"), text)
        return sweeps.Job(folder, (train, score), "result.txt")

    sweeps.run([scored("before")], [{}], device="first", say=lambda *_, **__: None)
    for ending in ("finished after", "found finished"):
        _, said = run([scored("after")])
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
    jobs = [job(tmp_path / name, program) for name in "ab"]
    failed, said = run(jobs, slots=[{"PLACE": "0"}, {"PLACE": "1"}])
    assert failed == {}
    assert {line.split()[0] for line in said if "python" in line} == {"PLACE=0", "PLACE=1"}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_children_die_with_a_sweep_that_is_killed_and_a_new_one_goes_on(tmp_path):
    sleeper = (
        f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text("
        "str(os.getpid())); time.sleep(600)"
    )
    program = (
        "import pathlib, sys; from deeplab_jax import sweeps\n"
        f"sweeps.run([sweeps.Job(pathlib.Path({str(tmp_path / 'a')!r}),"
        f" ((sys.executable, '-c', {sleeper!r}),), 'result.txt')], [{{}}])"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not alive(child))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_job_waits_for_the_process_that_is_still_in_its_folder(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    held = (
        "import pathlib, sys, time; from deeplab_jax import runs\n"
        f"with runs.hold(pathlib.Path({str(folder)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()\n"
        f"    pathlib.Path({str(folder / 'result.txt')!r}).write_text('theirs')"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    assert sweeps.is_held(folder)
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps.time, "sleep", lambda _: (other.stdin.close(), other.wait()))
        failed = sweeps.run([job(folder)], [{}], say=lambda text, **_: said.append(text))
    assert failed == {}
    assert (folder / "result.txt").read_text() == "theirs"
    assert "found finished" in said[-1]


def test_slots_are_the_devices_that_a_process_may_see(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweeps.slot_of("cuda", 1) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert sweeps.slot_of("cuda", 1) == {"CUDA_VISIBLE_DEVICES": "6"}
    assert sweeps.slot_of("tpu", 3)["TPU_VISIBLE_CHIPS"] == "3"


def test_a_machine_without_accelerator_is_one_slot_or_as_many_as_asked_for(monkeypatch):
    probed = subprocess.CompletedProcess([], 0, stdout="cpu|8|cpu\n")
    monkeypatch.setattr(sweeps.subprocess, "run", lambda *_, **__: probed)
    assert sweeps.find_devices() == (f"CPU, {os.cpu_count()} cores", [{}])
    assert sweeps.find_devices(3)[1] == [{}, {}, {}]
    probed.stdout = "cuda|2|NVIDIA H100\n"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    places = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert sweeps.find_devices() == ("NVIDIA H100", places)


def test_what_jax_says_of_a_missing_device_is_passed_on(monkeypatch):
    probed = subprocess.CompletedProcess([], 1, stderr="Traceback\nRuntimeError: no TPU\n")
    monkeypatch.setattr(sweeps.subprocess, "run", lambda *_, **__: probed)
    with pytest.raises(UserError, match="no device here: RuntimeError: no TPU"):
        sweeps.find_devices()


def test_a_folder_that_cannot_be_made_fails_alone(tmp_path):
    (tmp_path / "file").write_text("")
    failed, _ = run([job(tmp_path / "file" / "a"), job(tmp_path / "b")])
    assert failed == {tmp_path / "file" / "a": "the folder cannot be used: Not a directory"}
    assert (tmp_path / "b/result.txt").exists()


def test_an_overview_tells_the_update_of_each_run_and_when_all_will_be_done(tmp_path, monkeypatch):
    (tmp_path / "log.txt").write_text("update 10 of 100: loss 1\nupdate 25 of 100: loss 1\n")
    overview = sweeps.Overview(5, slots=1, left=2)
    assert overview.when(100.0) == ""  # nothing is known yet
    overview.begun[tmp_path] = (3, 50.0)
    # A quarter took 50 s, so that a run takes 200 s: 150 s of this one, and two others.
    assert overview.expected(100.0) == pytest.approx(150 + 2 * 200)
    assert "run 3: update 25 of 100; 5 runs in all, all done in about 0:09:10" in overview.describe(
        100.0
    )
    overview.taken = [80.0, 120.0]  # runs that are finished tell better
    assert overview.expected(100.0) == pytest.approx(50 + 2 * 100)


def test_two_slots_halve_the_time_of_the_runs_that_wait():
    overview = sweeps.Overview(6, slots=2, left=4, taken=[100.0])
    assert overview.expected(0.0) == pytest.approx(4 * 100 / 2)


def test_a_sweep_in_a_log_file_numbers_its_runs(tmp_path, capsys):
    sweeps.run([job(tmp_path / "a"), job(tmp_path / "b")], [{}])
    out, err = capsys.readouterr()
    assert err == ""
    assert f"run 1 of 2, {tmp_path / 'a'}: finished after" in out
    assert "all done in about" in out  # after the first, of the second
    assert out.splitlines()[-1].startswith(f"run 2 of 2, {tmp_path / 'b'}: finished after")
