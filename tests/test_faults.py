"""A run that cannot be lost: faults put into real runs of train_voc.py; see reliability.md."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import runs_with_faults as faults
from runs_with_faults import NUM_STEPS, finish, run, start, wait_until

from deeplab_jax.interruption import EXIT_STATUS, QUIT_STATUS

slow = pytest.mark.slow

PLACES = ("arrays", "manifest", "half a manifest", "rename", "committed", "removal")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    faults.draw_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """A run that nothing happened to."""
    run(folder, "whole", RECORD="whole.txt")
    return folder / "whole"


def send(process, workdir, number, at_update):
    """A signal when so many updates are logged; when it was sent."""
    wait_until(lambda: len(faults.updates(workdir)) >= at_update, process)
    process.send_signal(number)
    return time.monotonic()


def took(what, since, *, limit):
    """Tells a time, which `pytest -rP` shows, and holds it to its limit."""
    seconds = time.monotonic() - since
    print(f"{what} after {seconds:.2f} s")
    assert seconds < limit


def recorded(path):
    """Batches that a process with RECORD has begun."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_run_stopped_in_three_ways_ends_as_one_that_was_never_stopped(folder, whole):
    """SIGTERM, then SIGKILL inside a save, then SIGINT; then the same command to the end."""
    workdir = folder / "stopped"
    patient = ["--save-every", 100]
    process = start(folder, "stopped", *patient, FAULT="slow:0.3")
    sent = send(process, workdir, signal.SIGTERM, at_update=2)
    out = finish(process, status=EXIT_STATUS)
    assert time.monotonic() - sent < 30
    (step,) = faults.saved(workdir)
    assert f"update {step} is saved" in out
    assert faults.updates(workdir)[-1] == step

    run(folder, "stopped", status=-signal.SIGKILL, FAULT="kill:manifest:1")
    assert list(workdir.glob("checkpoints/*.partial"))

    process = start(folder, "stopped", *patient, FAULT="slow:0.3", RECORD="third.txt")
    # Its own record: the metrics still hold what the killed process did.
    wait_until(lambda: recorded(folder / "third.txt") > 2, process)
    process.send_signal(signal.SIGINT)
    finish(process, status=EXIT_STATUS)
    run(folder, "stopped")
    faults.assert_same_run(workdir, whole)


@pytest.fixture(scope="module")
def interrupted(folder):
    """A run killed when it had two checkpoints and half of a third."""
    run(folder, "interrupted", status=-signal.SIGKILL, FAULT="kill:rename:4")
    return folder / "interrupted"


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@slow
@pytest.mark.parametrize(
    ("spoil", "name", "told"),
    [
        (truncate, "optimizer/state/d/*", "has changed since it was written (optimizer/state/d/"),
        (empty, "model/state/manifest.ocdbt", "has changed since it was written (model/state/mani"),
        (flip_a_bit, "model/state/d/*", "has changed since it was written (model/state/d/"),
        (Path.unlink, "manifest.json", "has no manifest.json"),
    ],
)
def test_a_run_that_goes_on_after_damage_uses_the_newest_good_checkpoint(
    folder, whole, interrupted, spoil, name, told
):
    workdir = shutil.copytree(interrupted, folder / f"damaged-{spoil.__name__}")
    newest = max(faults.saved(workdir))
    (path,) = (workdir / "checkpoints" / str(newest)).glob(name)
    spoil(path)
    out = run(folder, workdir.name)
    assert f"{newest} {told}" in out
    assert f"it is now {newest}.damaged" in out
    assert f"going on in {workdir.name} after update {newest - 2}" in out
    faults.assert_same_run(workdir, whole)


def test_updates_that_are_not_finite_end_the_run_with_a_diagnosis(folder):
    """A learning rate that no network survives: finite at first, then not for ever."""
    out = run(folder, "diverged", "--optim.learning-rate", 1e30, "--max-skipped", 3, status=2)
    (sentence,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "3 updates in a row were not finite and skipped" in sentence
    assert "the first layer whose output is not finite is trunk/" in sentence
    assert sum(f"p{i}" in sentence.split("photographs")[1] for i in range(8)) == 4
    records = [r for r in faults.lines(folder / "diverged") if "loss" in r]
    last_good = max(r["step"] for r in records if r["skipped"] == 0)
    assert [r["skipped"] for r in records[-3:]] == [1, 2, 3]
    assert records[-1]["step"] == last_good + 3
    assert faults.arrays(folder / "diverged")  # whole and finite, or it would not be read


@slow
@pytest.mark.parametrize("seed", [0])
def test_twenty_kills_lose_nothing(folder, seed):
    """14 at random moments, 6 inside a save, each at another place of it; both records are kept."""
    rng = random.Random(seed)
    options = ["--num-steps", 90]
    run(folder, "unkilled", *options, RECORD="unkilled.txt")
    workdir = folder / "killed"
    record = folder / "killed.txt"
    kills = ["random"] * 14 + list(PLACES)
    rng.shuffle(kills)
    for kill in kills:
        if kill == "random":
            before = recorded(record)
            process = start(folder, "killed", *options, RECORD="killed.txt")
            wanted = before + rng.randint(1, 6)
            wait_until(lambda wanted=wanted: recorded(record) >= wanted, process)
            time.sleep(rng.random() * 0.05)
            process.kill()
            finish(process, status=-signal.SIGKILL)
        else:
            fault = f"kill:{kill}:{3 if kill in ('committed', 'removal') else 1}"
            run(
                folder, "killed", *options,
                status=-signal.SIGKILL, FAULT=fault, RECORD="killed.txt",
            )  # fmt: skip
    run(folder, "killed", *options, RECORD="killed.txt")
    faults.assert_same_run(workdir, folder / "unkilled")
    assert faults.updates(workdir) == list(range(1, 91))
    seen = Counter((folder / "killed.txt").read_text().splitlines())
    assert seen.keys() == set((folder / "unkilled.txt").read_text().splitlines())


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at_update", [1, 4, 9])
def test_a_signal_saves_the_last_update_and_ends_with_its_status(folder, number, at_update):
    name = f"signal{number}-{at_update}"
    process = start(folder, name, "--save-every", 100, FAULT="slow:0.2")
    sent = send(process, folder / name, number, at_update)
    out = finish(process, status=EXIT_STATUS)
    took("exit", sent, limit=30)
    (step,) = faults.saved(folder / name)
    assert step >= at_update and f"update {step} is saved" in out


@slow
@pytest.mark.parametrize("attempt", range(3))
def test_a_second_interrupt_quits_at_once(folder, attempt):
    """The first one is answered by a save that never ends."""
    name = f"twice{attempt}"
    process = start(folder, name, "--save-every", 100, FAULT=f"slow_save:{folder}/saving{attempt}")
    send(process, folder / name, signal.SIGINT, at_update=1)
    wait_until((folder / f"saving{attempt}").exists, process)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    finish(process, status=QUIT_STATUS, seconds=10)
    took("exit", sent, limit=10)


@slow
def test_an_accumulated_update_is_given_up_and_done_again(folder):
    """Four devices' worth of micro-batches; the same end as without the signal."""
    options = ["--max-per-device", 1, "--model.norm", "trained", "--save-every", 100]
    run(folder, "accumulated", *options)
    process = start(folder, "given-up", *options)
    send(process, folder / "given-up", signal.SIGTERM, at_update=1)
    finish(process, status=EXIT_STATUS)
    run(folder, "given-up", *options)
    faults.assert_same_run(folder / "given-up", folder / "accumulated")


@slow
def test_a_signal_before_the_first_update_ends_the_run_at_once(folder):
    process = start(folder, "early")
    wait_until((folder / "early" / "lock").exists, process)
    process.send_signal(signal.SIGTERM)
    assert "nothing was to be saved" in finish(process, status=EXIT_STATUS, seconds=30)


@slow
@pytest.mark.parametrize("size", [3_000, 6_000, 12_000])
def test_a_full_disk_ends_the_run_at_once_and_keeps_what_is_there(folder, whole, size):
    """A limit on the size of any file stands for the end of the disk."""
    name = f"full{size}"
    run(folder, name, status=-signal.SIGKILL, FAULT="kill:rename:3")
    before = faults.saved(folder / name)
    process = start(folder, name)
    wait_until(lambda: (folder / name / "lock").exists(), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    out = finish(process, status=2)
    (sentence,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "File too large" in sentence and "type the same command again" in sentence
    assert "Traceback" not in out
    assert faults.saved(folder / name) == before
    run(folder, name)
    faults.assert_same_run(folder / name, whole)


@slow
def test_a_full_disk_under_the_curves_ends_the_run_too(folder, whole):
    """They grow faster than metrics.jsonl, and nothing is saved meanwhile."""
    process = start(folder, "curves", "--save-every", 100, FAULT="slow:0.2")
    wait_until(lambda: faults.updates(folder / "curves"), process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (3_000, 3_000))
    out = finish(process, status=2, seconds=60)
    (sentence,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "curves/tensorboard cannot be written (File too large)" in sentence
    assert "Traceback" not in out
    run(folder, "curves")
    faults.assert_same_run(folder / "curves", whole)


@slow
def test_a_reader_of_the_output_that_leaves_changes_nothing(folder, whole):
    """As `| head` does, and `2>&1 | tee` at Ctrl-C; the run then ends as asked, and goes on."""
    process = start(folder, "unread", "--save-every", 100, FAULT="slow:0.3")
    process.stdout.close()
    process.stderr.close()
    send(process, folder / "unread", signal.SIGINT, at_update=2)
    assert process.wait(timeout=60) == EXIT_STATUS
    (step,) = faults.saved(folder / "unread")
    assert faults.updates(folder / "unread")[-1] == step

    process = start(folder, "unread")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=300) == 0
    faults.assert_same_run(folder / "unread", whole)


@slow
def test_a_run_does_not_go_on_with_other_photographs(folder, tmp_path):
    """A copy with other times is the same; one photograph less is not."""
    data = shutil.copytree(folder / "data", tmp_path / "data", copy_function=shutil.copyfile)
    run(tmp_path, "run", "--num-steps", 2)
    moved = data.rename(tmp_path / "moved")
    run(tmp_path, "run", "--num-steps", 2, "--data.root", "moved")
    split = moved / "ImageSets" / "Segmentation" / "train.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    out = run(tmp_path, "run", "--num-steps", 2, "--data.root", "moved", status=2)
    assert "error: run holds a run with photographs (their names and sizes in bytes)" in out


@slow
@pytest.mark.parametrize("attempt", range(5))
def test_a_killed_worker_ends_the_run_with_a_sentence(folder, attempt):
    options = ["--workers", 2, "--num-steps", 10**5]
    process = start(folder, f"worker{attempt}", *options)
    wait_until(lambda: len(faults.updates(folder / f"worker{attempt}")) > 2 + attempt, process)
    victim, *others = workers(process.pid)
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    out = finish(process, status=2, seconds=60)
    took("error", killed, limit=10)
    assert len(others) == 1 and not is_alive(others[0])
    assert "a process that reads photographs was killed" in out


@slow
@pytest.mark.parametrize("attempt", range(5))
def test_no_process_outlives_a_trainer_killed_under_a_pipe(folder, attempt):
    """`train_voc.py | cat`: the pipe ends when the last process that holds it does."""
    name = f"piped{attempt}"
    process = start(folder, name, "--workers", 2, "--num-steps", 10**5)
    pipe = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    process.stdout.close()
    wait_until(lambda: len(faults.updates(folder / name)) > 2 + attempt, process)
    children = workers(process.pid)
    killed = time.monotonic()
    process.kill()
    process.wait()
    pipe.wait(timeout=10)
    took("end of the pipe", killed, limit=10)
    assert len(children) == 2
    assert not any(is_alive(child) for child in children)


def is_alive(pid):
    """Whether a process still runs; one that nobody has waited for does not."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")


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
def test_nan_from_an_update_on_stops_the_run_with_the_photographs_and_the_layer(folder, whole):
    out = run(folder, "nan", "--max-skipped", 4, status=2, FAULT="nan:5:99")
    (sentence,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "4 updates in a row were not finite and skipped, the last of them 8" in sentence
    assert "the first layer whose output is not finite is trunk/conv1" in sentence
    assert max(faults.saved(folder / "nan")) <= 8
    same = [r for r in faults.lines(folder / "nan") if r.get("skipped") == 0]
    assert same == [r for r in faults.lines(whole) if r["step"] <= 4]


@slow
def test_a_second_run_in_a_work_folder_is_refused_unless_the_first_is_dead(folder):
    process = start(folder, "shared", "--num-steps", 10**5)
    wait_until(lambda: faults.updates(folder / "shared"), process)
    out = run(folder, "shared", "--num-steps", 10**5, status=2)
    assert "another run is in shared" in out
    process.kill()
    finish(process, status=-signal.SIGKILL)
    process = start(folder, "shared", "--num-steps", 10**5, RECORD="shared.txt")
    wait_until(lambda: recorded(folder / "shared.txt") > 2, process)
    process.kill()
    finish(process, status=-signal.SIGKILL)


@slow
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_run_may_go_on_with_other_workers(folder, whole, workers):
    name = f"workers{workers}"
    run(folder, name, "--workers", 2, status=-signal.SIGKILL, FAULT="kill:rename:4")
    run(folder, name, "--workers", workers)
    faults.assert_same_run(folder / name, whole)


@slow
def test_a_run_that_goes_on_reads_no_weights(folder):
    run(folder, "source")
    weights = ["--weights", "source"]
    run(folder, "tuned", *weights, status=-signal.SIGKILL, FAULT="kill:rename:2")
    (folder / "source").rename(folder / "gone")
    run(folder, "tuned", *weights)
    assert faults.updates(folder / "tuned") == list(range(1, NUM_STEPS + 1))


@slow
def test_nothing_is_written_outside_the_work_folder_and_the_prepared_data(folder, tmp_path):
    faults.draw_data(tmp_path / "data")
    environment = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    for place in environment.values():
        os.mkdir(place)
    run(tmp_path, "run", **environment, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert {p.name for p in tmp_path.iterdir()} == {
        "data", "run", "prepared", "home", "tmp", "cache"
    }  # fmt: skip
    at_home = [p.relative_to(tmp_path / "home") for p in (tmp_path / "home").rglob("*")]
    assert {str(p) for p in at_home} <= {".config", ".config/matplotlib"}
    assert not list((tmp_path / "tmp").iterdir())
