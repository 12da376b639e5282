"""Runs of several processes on this machine, and runs that go on with other devices."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from unittest.mock import Mock

import jax
import numpy as np
import pytest
import runs_with_faults as faults
from runs_with_faults import NUM_STEPS, finish, run, start, wait_until

from deeplab_jax import checkpoints, hosts
from deeplab_jax.interruption import EXIT_STATUS
from deeplab_jax.types import UserError

slow = pytest.mark.slow

# Eight photographs an update, so that four devices and two processes have the same share.
OPTIONS = ["--batch-size", 8, "--max-per-device", 8, "--num-devices", "None"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    faults.draw_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def on_four_devices(folder):
    run(folder, "four", *OPTIONS, devices=4, RECORD="four.txt")
    return folder / "four"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def joining(number):
    """The variables of each process of a run of several."""
    values = (f"127.0.0.1:{free_port()}", str(number))
    return [dict(zip(hosts.VARIABLES, (*values, str(i)), strict=True)) for i in range(number)]


def start_all(folder, workdir, *options, processes, devices=1, **variables):
    """The processes of one run; the first of them writes."""
    return [
        start(folder, workdir, *OPTIONS, *options, devices=devices, **where, **variables)
        for where in joining(processes)
    ]


def run_all(*arguments, **options):
    return [finish(process) for process in start_all(*arguments, **options)]


def assert_close_run(workdir, other):
    """Parameters to 1e-5 of their size, the same updates, the same score.

    The gradient of a bias of a batch norm is a sum that cancels: it may err by 3e-8.
    """
    found, wanted = faults.arrays(workdir), faults.arrays(other)
    for name in wanted:
        scale = np.abs(wanted[name]).max() + 3e-3
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5 * scale, err_msg=name)
    assert faults.updates(workdir) == faults.updates(other)
    scores = [json.loads((path / "score.json").read_text()) for path in (workdir, other)]
    assert scores[0]["pixel_accuracy"] == pytest.approx(scores[1]["pixel_accuracy"], abs=2e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_all_reduce_sum_is_exact_above_32_bits(monkeypatch, processes):
    """Simulated processes; devices would cut int64 to 32 bits."""
    counts = np.array([[2**40 + 7, 1], [0, 2**33]])
    monkeypatch.setattr(hosts.jax, "process_count", lambda: processes)
    gathered = lambda halves: np.stack([halves.astype(np.uint32)] * processes)  # noqa: E731
    monkeypatch.setattr(hosts.multihost_utils, "process_allgather", gathered)
    np.testing.assert_array_equal(hosts.all_reduce_sum(counts), processes * counts)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shards_of_all_processes_hold_each_item_once(monkeypatch, processes):
    monkeypatch.setattr(hosts.jax, "process_count", lambda: processes)
    seen = []
    for process in range(processes):
        monkeypatch.setattr(hosts.jax, "process_index", lambda process=process: process)
        shard = hosts.ProcessShard(list(range(13)))
        seen += [shard[i] for i in range(len(shard))]
    assert sorted(seen) == list(range(13))


def join(monkeypatch, *values, wanted=False):
    """What jax.distributed.initialize is given, with these variables set."""
    given = []
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda *args: given.append(args))
    monkeypatch.setattr(hosts, "_connect", lambda: None)
    for name, value in zip(hosts.VARIABLES, (*values, None, None, None), strict=False):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    hosts.join(wanted)
    return given


def test_processes_are_those_of_the_variables_or_else_of_the_cluster(monkeypatch):
    assert join(monkeypatch) == []
    assert join(monkeypatch, wanted=True) == [(None, None, None)]
    assert join(monkeypatch, "first-host:1234", "2", "1") == [("first-host:1234", 2, 1)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("127.0.0.1:1",), "a process of several needs all of JAX_COORDINATOR_ADDRESS"),
        ((None, "2", "1"), "a process of several needs all of JAX_COORDINATOR_ADDRESS"),
        (("first-host", "2", "0"), "first-host and must be HOST:PORT of process 0"),
        (("127.0.0.1:1", "two", "0"), "JAX_NUM_PROCESSES is 'two' and must be a number"),
    ],
)
def test_variables_that_do_not_suffice_are_refused_by_name(monkeypatch, values, sentence):
    with pytest.raises(UserError, match=sentence):
        join(monkeypatch, *values)


SAVE = """
import sys
from pathlib import Path
import jax
import numpy as np
from deeplab_jax import checkpoints, hosts

hosts.join(False)
assert jax.process_count() == 2
checkpoints.stop_comparing_folders()
if jax.process_index() == 0:
    arrays = {"params": {"w": np.arange(6, dtype=np.float32)}}
    checkpoints.write_arrays(Path(sys.argv[1]), arrays)
"""


def test_one_of_two_processes_saves_while_the_other_does_something_else(tmp_path):
    command = [sys.executable, "-c", SAVE, tmp_path / "3"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    other, saver = (subprocess.Popen(command, env=environment | where) for where in joining(2))
    try:
        assert saver.wait(timeout=60) == other.wait(timeout=60) == 0
    finally:
        saver.kill()
        other.kill()
    found = checkpoints.read(tmp_path, 3, "params", {"w": np.zeros(6, np.float32)})
    assert np.array_equal(found["w"], np.arange(6))


@slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 1), (4, 1), (2, 2)])
def test_several_processes_train_and_score_as_one(folder, on_four_devices, processes, devices):
    name = f"processes{processes}x{devices}"
    run_all(folder, name, processes=processes, devices=devices)
    assert_close_run(folder / name, on_four_devices)


@pytest.fixture(scope="module")
def killed_on_four(folder):
    killed = {"status": -signal.SIGKILL, "FAULT": "kill:rename:4"}
    run(folder, "killed", *OPTIONS, devices=4, **killed)
    assert faults.updates(folder / "killed")[-1] < NUM_STEPS
    return folder / "killed"


@slow
@pytest.mark.parametrize(("processes", "devices"), [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2)])
def test_a_checkpoint_of_four_devices_resumes_on_any_number(
    folder, on_four_devices, killed_on_four, processes, devices
):
    name = f"from-four-to{processes}x{devices}"
    shutil.copytree(killed_on_four, folder / name)
    if processes == 1:
        run(folder, name, *OPTIONS, devices=devices, RECORD=f"{name}.txt")
        batches = (folder / f"{name}.txt").read_text().splitlines()
        assert batches == (folder / "four.txt").read_text().splitlines()[-len(batches) :]
    else:
        run_all(folder, name, processes=processes, devices=devices)
    compare = faults.assert_same_run if (processes, devices) == (1, 4) else assert_close_run
    compare(folder / name, on_four_devices)


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_after_the_same_update(folder, number):
    """Then all go on, as a run that was never stopped."""
    name = f"signal{number}"
    options = ["--save-every", 100, "--num-steps", 40]
    processes = start_all(folder, name, *options, processes=2, FAULT="slow:0.2")
    wait_until(lambda: len(faults.updates(folder / name)) > 2, processes[0])
    processes[1].send_signal(number)
    for process in processes:
        finish(process, status=EXIT_STATUS, seconds=60)
    (step,) = faults.saved(folder / name)
    assert step == faults.updates(folder / name)[-1] < 40
    run_all(folder, name, *options, processes=2)
    assert faults.updates(folder / name) == list(range(1, 41))


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_score_of_several_processes(tmp_path, number):
    """Eight photographs of two seconds each in either process; the update before is saved."""
    faults.draw_data(tmp_path / "data", num_val=16)
    options = ["--evaluate-every", 2, "--num-steps", 4]
    fault = f"slow_score:{tmp_path}/scoring"
    processes = start_all(tmp_path, "scored", *options, processes=2, FAULT=fault)
    wait_until((tmp_path / "scoring").exists, processes[0])
    processes[1].send_signal(number)
    for process in processes:
        out = finish(process, status=EXIT_STATUS, seconds=14)
        assert "stopped: all that was done is saved" in out
    assert faults.saved(tmp_path / "scored") == [2]
    assert faults.updates(tmp_path / "scored") == [1, 2]


@slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other_which_can_go_on(folder, on_four_devices, victim):
    name = f"killed{victim}"
    processes = start_all(folder, name, processes=2, FAULT="slow:0.2")
    wait_until(lambda: len(faults.updates(folder / name)) > 4, processes[0])
    processes[victim].kill()
    outputs = processes[1 - victim].communicate(timeout=30)
    # JAX aborts the others where the first process goes; where another goes we hear of it.
    assert processes[1 - victim].returncode in ((2,) if victim else (2, -signal.SIGABRT)), outputs
    assert not victim or "error: the processes lost each other" in outputs[1]
    run_all(folder, name, processes=2)
    assert_close_run(folder / name, on_four_devices)


@slow
def test_a_distributed_run_reads_the_variables_of_slurm(folder, on_four_devices):
    """Those of `srun --ntasks 2`."""
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    job["JAX_COORDINATOR_PORT"] = str(free_port())
    options = ("slurm", *OPTIONS, "--distributed")
    tasks = [
        start(folder, *options, **job, SLURM_PROCID=str(task), SLURM_LOCALID=str(task))
        for task in range(2)
    ]
    for task in tasks:
        finish(task)
    assert_close_run(folder / "slurm", on_four_devices)


@slow
def test_process_0_names_the_layer_whichever_process_had_the_photograph(folder):
    """Process 1 alone may see NaN: the second half of the photographs of an update is its."""
    processes = start_all(folder, "nan", processes=2, FAULT="nan:5:99:4")
    told = finish(processes[0], status=2)
    assert "is not finite is trunk/conv1;" in told
    processes[1].communicate(timeout=60)
    assert processes[1].returncode in (2, -signal.SIGABRT)  # JAX aborts it when the first ends


@slow
def test_a_second_run_in_a_work_folder_ends_in_all_its_processes(folder, on_four_devices):
    with open(on_four_devices / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        processes = start_all(folder, "four", processes=2)
        outputs = [process.communicate(timeout=120) for process in processes]
    assert processes[0].returncode == 2
    assert "another run is in four" in outputs[0][1]
    assert processes[1].returncode != 0


def test_devices_are_described_by_their_kind_and_number():
    cards = [Mock(jax.Device, platform="gpu", device_kind="NVIDIA H100")] * 2
    assert hosts.describe(cards) == "2 x NVIDIA H100"
    assert re.match(r"\d+ cores of \S+", hosts.describe(jax.devices()))
