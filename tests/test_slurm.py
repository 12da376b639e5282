"""experiments/train.slurm under stand-ins for Slurm's commands, which send the signals."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "experiments/train.slurm"

SRUN = """#!/bin/bash
# Starts the step and, where the job has not been queued again yet, sends it the signal.
shift 2  # python experiments/train_voc.py
{python} {trainer} "$@" &
if [ ! -e requeued ]; then
  while [ ! -e training ]; do sleep 0.05; done
  kill -{signal} $!
fi
wait $!
"""

TRAINER = """
import pathlib, signal, sys, time
log = pathlib.Path("log").open("a")
print(*sys.argv[1:], file=log, flush=True)
def stop(*_):
    print("saved", file=log, flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("training").touch()
if pathlib.Path("requeued").exists():
    sys.exit(0)
time.sleep(60)
"""


@pytest.fixture
def sbatch(tmp_path):
    """Submits the script with arguments, once more each time it is queued again; exit statuses."""
    signal = re.search(r"^#SBATCH --signal=(\w+)@\d+$", SCRIPT.read_text(), re.M)[1]
    (tmp_path / "trainer.py").write_text(TRAINER)
    commands = {
        "srun": SRUN.format(python=sys.executable, trainer=tmp_path / "trainer.py", signal=signal),
        "scontrol": '#!/bin/bash\necho "$@" >> requeued\n',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def submit(*arguments, tasks=1):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        environment["SLURM_NTASKS"] = str(tasks)
        statuses, requeued = [], tmp_path / "requeued"
        while not statuses or len(requeued.read_text().splitlines()) == len(statuses):
            done = subprocess.run(
                ["bash", SCRIPT, *arguments], cwd=tmp_path, env=environment, timeout=60
            )
            statuses.append(done.returncode)
        return statuses

    return submit


def test_a_job_that_reaches_its_time_limit_saves_and_is_queued_again(sbatch, tmp_path):
    assert sbatch("small", "--data.root", "two words") == [75, 0]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert (tmp_path / "log").read_text().splitlines() == [
        "small --data.root two words", "saved", "small --data.root two words",
    ]  # fmt: skip


def test_several_tasks_find_each_other_by_the_cluster(sbatch, tmp_path):
    sbatch("small", tasks=4)
    assert "small --distributed" in (tmp_path / "log").read_text()
