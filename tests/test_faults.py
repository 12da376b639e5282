"""A run that cannot be lost: faults put into real runs of train_voc.py; see reliability.md."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import runs_with_faults as faults
from runs_with_faults import NUM_STEPS, finish, is_alive, run, start, wait_until
from save_faults import PLACES, flip_a_bit

from deeplab_jax.interruption import EXIT_STATUS, QUIT_STATUS

slow = pytest.mark.slow


def interrupt(folder, name, number, *options, at_update, **variables):
    """What a run wrote that got a signal when so many updates were logged; it ends within 30 s."""
    process = start(folder, name, *options, **variables)
    wait_until(lambda: len(faults.updates(folder / name)) >= at_update, process)
    process.send_signal(number)
    return finish(process, status=EXIT_STATUS, seconds=30)


def error_in(out):
    """The one sentence that a run ends with."""
    (sentence,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in out
    return sentence


def recorded(path):
    """Batches that a process with RECORD has begun."""
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.mark.parametrize(
    ("number", "at_update"),
    [
        (signal.SIGTERM, 2),
        pytest.param(signal.SIGTERM, 9, marks=slow),
        pytest.param(signal.SIGINT, 1, marks=slow),
        pytest.param(signal.SIGINT, 4, marks=slow),
    ],
)
def test_a_run_stopped_twice_ends_as_one_never_stopped(folder, number, at_update):
    """By a signal, then by SIGKILL inside a save; then the same command runs to the end."""
    name = f"signal{number}-{at_update}"
    options = {"at_update": at_update, "FAULT": "slow:0.3"}
    out = interrupt(folder, name, number, "--save-every", 100, **options)
    (step,) = faults.saved(folder / name)
    assert f"update {step} is saved" in out
    assert faults.updates(folder / name)[-1] == step >= at_update
    run(folder, name, status=-signal.SIGKILL, FAULT="kill:manifest:1")
    assert list(folder.glob(f"{name}/checkpoints/*.partial"))
    run(folder, name)
    faults.assert_same_run(folder / name, folder / "whole")


@slow
@pytest.mark.parametrize(
    ("spoil", "name", "told"),
    [
        (flip_a_bit, "model/state/d/*", "has changed since it was written (model/state/d/"),
        (Path.unlink, "manifest.json", "has no manifest.json"),
    ],
)
def test_a_run_that_goes_on_after_damage_uses_the_newest_good_checkpoint(folder, spoil, name, told):
    workdir = folder / f"damaged-{spoil.__name__}"
    run(folder, workdir.name, status=-signal.SIGKILL, FAULT="kill:rename:4")
    newest = max(faults.saved(workdir))
    (path,) = (workdir / "checkpoints" / str(newest)).glob(name)
    spoil(path)
    out = run(folder, workdir.name)
    assert f"{newest} {told}" in out
    assert f"it is now {newest}.damaged" in out
    assert f"going on in {workdir.name} after update {newest - 2}" in out
    faults.assert_same_run(workdir, folder / "whole")


def test_updates_that_are_not_finite_end_the_run_with_a_diagnosis(folder):
    """A learning rate that no network survives: finite at first, then not for ever."""
    sentence = error_in(run(folder, "diverged", "--optim.learning-rate", 1e30, status=2))
    assert "5 updates in a row were not finite and skipped" in sentence
    assert "the first layer whose output is not finite is trunk/" in sentence
    assert sum(f"p{i}" in sentence.split("photographs")[1] for i in range(8)) == 4
    records = [r for r in faults.lines(folder / "diverged") if "loss" in r]
    last_good = max(r["step"] for r in records if r["skipped"] == 0)
    assert [r["skipped"] for r in records[-5:]] == [1, 2, 3, 4, 5]
    assert records[-1]["step"] == last_good + 5
    assert faults.arrays(folder / "diverged")  # whole and finite, or it would not be read


@slow
def test_twenty_kills_lose_nothing(folder):
    """14 at random moments, 6 inside a save, each at another place of it; both records are kept."""
    rng = random.Random(0)
    options = ["--num-steps", 90]
    run(folder, "unkilled", *options, RECORD="unkilled.txt")
    record = folder / "killed.txt"
    kills = ["random"] * 14 + list(PLACES)
    rng.shuffle(kills)
    for place in kills:
        if place == "random":
            process = start(folder, "killed", *options, RECORD="killed.txt")
            wanted = recorded(record) + rng.randint(1, 6)
            wait_until(lambda wanted=wanted: recorded(record) >= wanted, process)
            time.sleep(rng.random() * 0.05)
            process.kill()
            finish(process, status=-signal.SIGKILL)
        else:
            fault = f"kill:{place}:{3 if place in ('committed', 'removal') else 1}"
            killed = {"status": -signal.SIGKILL, "FAULT": fault, "RECORD": "killed.txt"}
            run(folder, "killed", *options, **killed)
    run(folder, "killed", *options, RECORD="killed.txt")
    faults.assert_same_run(folder / "killed", folder / "unkilled")
    assert faults.updates(folder / "killed") == list(range(1, 91))
    batches = [set(path.read_text().splitlines()) for path in (record, folder / "unkilled.txt")]
    assert batches[0] == batches[1]


@slow
@pytest.mark.parametrize("attempt", range(3))
def test_a_second_interrupt_quits_at_once(folder, attempt):
    """The first one is answered by a save that never ends."""
    saving = folder / f"saving{attempt}"
    fault = {"FAULT": f"slow_save:{saving}"}
    process = start(folder, f"twice{attempt}", "--save-every", 100, **fault)
    wait_until(lambda: faults.updates(folder / f"twice{attempt}"), process)
    process.send_signal(signal.SIGINT)
    wait_until(saving.exists, process)
    process.send_signal(signal.SIGINT)
    finish(process, status=QUIT_STATUS, seconds=10)


@slow
def test_an_accumulated_update_is_given_up_and_done_again(folder):
    """Four devices' worth of micro-batches; the same end as without the signal."""
    options = ["--max-per-device", 1, "--model.norm", "trained", "--save-every", 100]
    run(folder, "accumulated", *options)
    interrupt(folder, "given-up", signal.SIGTERM, *options, at_update=1)
    run(folder, "given-up", *options)
    faults.assert_same_run(folder / "given-up", folder / "accumulated")


@slow
def test_a_signal_before_the_first_update_ends_the_run_at_once(folder):
    process = start(folder, "early")
    wait_until((folder / "early" / "lock").exists, process)
    process.send_signal(signal.SIGTERM)
    assert "nothing was to be saved" in finish(process, status=EXIT_STATUS, seconds=30)


def fill_disk(folder, name, *options, size, when, **variables):
    """The sentence that a run ends with where from some moment on no file may be larger."""
    process = start(folder, name, *options, **variables)
    wait_until(when, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    return error_in(finish(process, status=2, seconds=60))


@slow
@pytest.mark.parametrize("size", [3_000, 6_000, 12_000])
def test_a_full_disk_ends_the_run_at_once_and_keeps_what_is_there(folder, size):
    name = f"full{size}"
    run(folder, name, status=-signal.SIGKILL, FAULT="kill:rename:3")
    before = faults.saved(folder / name)
    sentence = fill_disk(folder, name, size=size, when=(folder / name / "lock").exists)
    assert "File too large" in sentence and "type the same command again" in sentence
    assert faults.saved(folder / name) == before
    run(folder, name)
    faults.assert_same_run(folder / name, folder / "whole")


@slow
def test_a_full_disk_under_the_curves_ends_the_run_too(folder):
    """They grow faster than metrics.jsonl, and nothing is saved meanwhile."""
    options = {"size": 3_000, "when": lambda: faults.updates(folder / "curves")}
    sentence = fill_disk(folder, "curves", "--save-every", 100, **options, FAULT="slow:0.2")
    assert "curves/tensorboard cannot be written (File too large)" in sentence
    run(folder, "curves")
    faults.assert_same_run(folder / "curves", folder / "whole")


@slow
def test_a_reader_of_the_output_that_leaves_changes_nothing(folder):
    """As `| head` does, and `2>&1 | tee` at Ctrl-C; the run then ends as asked, and goes on."""

    def start_unread(*options, **variables):
        process = start(folder, "unread", *options, **variables)
        process.stdout.close()
        process.stderr.close()
        return process

    process = start_unread("--save-every", 100, FAULT="slow:0.3")
    wait_until(lambda: len(faults.updates(folder / "unread")) >= 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == EXIT_STATUS
    (step,) = faults.saved(folder / "unread")
    assert faults.updates(folder / "unread")[-1] == step
    assert start_unread().wait(timeout=300) == 0
    faults.assert_same_run(folder / "unread", folder / "whole")


@slow
def test_a_run_does_not_go_on_with_other_photographs(folder, tmp_path):
    """A copy with other times is the same; one photograph less is not."""
    data = shutil.copytree(folder / "data", tmp_path / "data", copy_function=shutil.copyfile)
    run(tmp_path, "run", "--num-steps", 2)
    moved = data.rename(tmp_path / "moved")
    again = ("run", "--num-steps", 2, "--data.root", "moved")
    run(tmp_path, *again)
    split = moved / "ImageSets" / "Segmentation" / "train.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    assert "run holds a run with photographs" in error_in(run(tmp_path, *again, status=2))


@slow
@pytest.mark.parametrize("at_update", range(2, 7))
def test_a_killed_worker_ends_the_run_with_a_sentence(folder, at_update):
    name = f"worker{at_update}"
    process = start(folder, name, "--workers", 2, "--num-steps", 10**5)
    wait_until(lambda: len(faults.updates(folder / name)) > at_update, process)
    victim, *others = workers(process.pid)
    os.kill(victim, signal.SIGKILL)
    out = finish(process, status=2, seconds=10)
    assert len(others) == 1 and not is_alive(others[0])
    assert "a process that reads photographs was killed" in out


@slow
def test_no_process_outlives_a_trainer_killed_under_a_pipe(folder):
    """`train_voc.py | cat`: the pipe ends when the last process that holds it does."""
    process = start(folder, "piped", "--workers", 2, "--num-steps", 10**5)
    pipe = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(faults.updates(folder / "piped")) > 3)
    children = workers(process.pid)
    process.kill()
    pipe.wait(timeout=20)
    assert len(children) == 2 and not any(map(is_alive, children))


def workers(pid):
    """The processes that read photographs for a trainer."""
    command = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]  # whole lines, whatever the path
    listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in listed if "spawn_main" in line]
    return [int(row[0]) for row in rows if int(row[1]) == pid]


@slow
def test_nan_in_one_batch_is_skipped_and_counted(folder):
    out = run(folder, "one-nan", FAULT="nan:5:5")
    assert "update 5 is not finite and skipped; 1 so far" in out
    records = [r for r in faults.lines(folder / "one-nan") if "loss" in r]
    assert [r["step"] for r in records] == list(range(1, NUM_STEPS + 1))
    assert [r["skipped"] for r in records] == [0] * 4 + [1] * 8
    assert records[4]["loss"] is None
    assert json.loads((folder / "one-nan" / "score.json").read_text())["mean_iou"] > 0


@slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_run_may_go_on_with_other_workers(folder, workers):
    name = f"workers{workers}"
    run(folder, name, "--workers", 2, status=-signal.SIGKILL, FAULT="kill:rename:4")
    run(folder, name, "--workers", workers)
    faults.assert_same_run(folder / name, folder / "whole")


@slow
def test_a_run_that_goes_on_reads_no_weights(folder):
    source = shutil.copytree(folder / "whole", folder / "source")
    weights = ["--weights", "source"]
    run(folder, "tuned", *weights, status=-signal.SIGKILL, FAULT="kill:rename:2")
    shutil.rmtree(source)
    run(folder, "tuned", *weights)
    assert faults.updates(folder / "tuned") == list(range(1, NUM_STEPS + 1))


@slow
def test_nothing_is_written_outside_the_work_folder_and_the_prepared_data(folder, tmp_path):
    faults.draw_data(tmp_path / "data")
    environment = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    for place in environment.values():
        os.mkdir(place)
    run(tmp_path, "run", **environment, XDG_CACHE_HOME=str(tmp_path / "cache"))
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {"data", "run", "prepared", "home", "tmp", "cache"}
    at_home = [p.relative_to(tmp_path / "home") for p in (tmp_path / "home").rglob("*")]
    assert {str(p) for p in at_home} <= {".config", ".config/matplotlib"}
    assert not list((tmp_path / "tmp").iterdir())
