"""Many runs from one command: processes over devices, resumable.

A job is a list of commands for one work folder, run one after another in processes of their own.
It is finished when its last command has left its file, so the same sweep typed again does only
what is missing; a job that fails is reported and stops no other. A result of another last
command does not count: the commands run again, and training finds that it is finished.
"""

import contextlib
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from deeplab_jax import workdir
from deeplab_jax.types import UserError

Slot = Mapping[str, str]
"""Environment variables that give a process its device."""

LEASH = (
    "import ctypes, os, signal, sys; PR_SET_PDEATHSIG = 1; "
    "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)

PROBE = (
    "import jax; d = jax.local_devices(); print(d[0].platform, len(d), d[0].device_kind, sep='|')"
)


@dataclass(frozen=True)
class Job:
    """Commands as lists of words; `result` is the file in `folder` that the last one leaves."""

    folder: Path
    commands: tuple[tuple[str, ...], ...]
    result: str

    @property
    def finished(self) -> bool:
        return (self.folder / self.result).exists()


def find_devices(parallel: int | None = None) -> tuple[str, list[Slot]]:
    """Name of this machine's device and a slot for each: GPU or TPU chip, or the CPU as one.

    `parallel` makes so many slots instead; on CPUs they share the cores. JAX is asked in
    another process, since one that has opened a GPU holds its memory.

    Raises:
      UserError: JAX cannot start.
    """
    found = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    if found.returncode:
        raise UserError(f"JAX finds no device here: {found.stderr.strip().splitlines()[-1]}")
    platform, number, kind = found.stdout.strip().splitlines()[-1].split("|")
    slots = [slot_of(platform, index) for index in range(int(number))]
    if platform == "cpu":
        kind, slots = f"CPU, {os.cpu_count()} cores", [{}]
    return kind, [slots[i % len(slots)] for i in range(parallel or len(slots))]


def slot_of(platform: str, index: int) -> Slot:
    """What makes the accelerator at `index` the only one that a process sees.

    >>> slot_of("tpu", 2)["TPU_VISIBLE_CHIPS"]
    '2'
    """
    if platform == "tpu":
        alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        return {"TPU_VISIBLE_CHIPS": str(index), **alone}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[index] if visible else str(index)}


def pasteable(command: Sequence[str], slot: Slot | None = None) -> str:
    """The command as a person would type it."""
    settings = [f"{name}={value}" for name, value in (slot or {}).items()]
    words = ["python" if word == sys.executable else word for word in command]
    return " ".join([*settings, shlex.join(words)])


UPDATE = re.compile(rb"update (\d+) of (\d+)")
"""A line of a training run's log."""


@dataclass
class Overview:
    """Which runs are under way, and when all will be done."""

    total: int
    slots: int
    begun: dict[Path, tuple[int, float]] = field(default_factory=dict)
    """Number, from 1, and start of the runs under way."""
    taken: list[float] = field(default_factory=list)
    """Seconds of the runs that this process has finished."""
    left: int = 0
    """Runs that have not begun."""

    def expected(self, now: float) -> float | None:
        """Seconds until all are done, from the runs that are finished, or from how far those under
        way are; None where nothing is known yet."""
        shares = {folder: share_done(folder) for folder in self.begun}
        known = [(now - self.begun[f][1]) / share for f, share in shares.items() if share]
        whole = self.taken or known
        if not whole:
            return None
        each = sum(whole) / len(whole)
        under_way = sum(max(each - (now - since), 0) for _, since in self.begun.values())
        return (under_way + self.left * each) / max(min(self.slots, self.left + len(self.begun)), 1)

    def describe(self, now: float) -> str:
        """The runs under way with their updates, and when all will be done."""
        parts = []
        for folder, (number, _) in sorted(self.begun.items(), key=lambda item: item[1]):
            update = newest_update(folder)
            parts.append(
                f"run {number}" + (f": update {update[0]} of {update[1]}" if update else "")
            )
        return f"{', '.join(parts)}; {self.total} runs in all{self.when(now)}"

    def when(self, now: float) -> str:
        seconds = self.expected(now)
        if not seconds:
            return ""
        end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
        day = end.strftime("%d %b ") if end.date() != datetime.date.today() else ""
        left = datetime.timedelta(seconds=round(seconds))
        return f", all done in about {left}, at {day}{end:%H:%M}"


def newest_update(folder: Path) -> tuple[int, int] | None:
    """The update that a run's log tells last, and how many there will be."""
    with contextlib.suppress(OSError), (folder / "log.txt").open("rb") as log:
        log.seek(0, os.SEEK_END)
        log.seek(max(log.tell() - 4096, 0))
        found = UPDATE.findall(log.read())
        if found:
            return int(found[-1][0]), int(found[-1][1])
    return None


def share_done(folder: Path) -> float:
    """Part of a run's updates that are done."""
    update = newest_update(folder)
    return update[0] / update[1] if update else 0.0


def run(
    jobs: Sequence[Job], slots: Sequence[Slot], *, device: str = "", say: Callable = tqdm.write
) -> dict[Path, str]:
    """Runs what is not finished, one job a slot at a time; folder -> reason of those that failed.

    Output goes to log.txt in each folder. A terminal shows the update of each run under way, and
    when all will be done. When this process ends, so do its children.
    """
    failed: dict[Path, str] = {}
    waiting = iter(enumerate(jobs, 1))  # all slots take from it
    processes: dict[Path, subprocess.Popen] = {}
    stopped = threading.Event()
    overview = Overview(len(jobs), len(slots), left=len(jobs))

    def tell(text: str) -> None:
        say(text)
        sys.stdout.flush()

    def work(slot: Slot) -> None:
        for number, job in waiting:
            since = time.monotonic()
            named = f"run {number} of {len(jobs)}, {job.folder}"
            overview.left, overview.begun[job.folder] = len(jobs) - number, (number, since)
            outcome, reason = carry_out(job, slot, device, processes, tell, stopped, named)
            seconds = time.monotonic() - since
            del overview.begun[job.folder]
            if reason:
                failed[job.folder] = reason
            if stopped.is_set():
                break
            if outcome == "finished":
                overview.taken.append(seconds)
            took = f"{outcome} after {seconds:.0f} s{reason and ': '}{reason}"
            tell(f"{named}: {took}{overview.when(time.monotonic())}")

    with ThreadPoolExecutor(len(slots)) as pool, shown(overview):
        try:
            list(pool.map(work, slots))
        except KeyboardInterrupt:
            stopped.set()
            for process in list(processes.values()):
                process.terminate()
            raise
    return failed


@contextlib.contextmanager
def shown(overview: Overview) -> Iterator[None]:
    """Shows the overview in the last line of a terminal, a second apart."""
    ended = threading.Event()
    bar = tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False, disable=None)

    def show() -> None:
        while not ended.wait(1):
            bar.set_description_str(overview.describe(time.monotonic()))

    if not bar.disable:
        threading.Thread(target=show, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        bar.close()


def carry_out(
    job: Job,
    slot: Slot,
    device: str,
    processes: dict[Path, subprocess.Popen],
    say: Callable[[str], None],
    stopped: threading.Event,
    named: str,
) -> tuple[str, str]:
    """What became of a job, and why it failed if it did."""
    if reason := claim(job, device):
        return "failed", reason
    while is_held(job.folder):  # by a process that outlived an earlier sweep, or another sweep's
        time.sleep(1)
    if job.finished:
        return "found finished", ""
    say(f"{named}:")
    for command in job.commands:
        if stopped.is_set():
            return "stopped", ""
        say(pasteable(command, slot))
        with (job.folder / "log.txt").open("a") as log:
            print("$", pasteable(command, slot), file=log, flush=True)
            processes[job.folder] = process = subprocess.Popen(
                ending_with_parent(command),
                env={**os.environ, **slot},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            status = process.wait()
        if status:
            return "failed", f"{last_line(job.folder / 'log.txt')} (exit status {status})"
    return "finished", ""


def claim(job: Job, device: str) -> str:
    """Records the job's commands and device in its folder; returns why it cannot, or "".

    A result of another last command is removed.
    """
    path = job.folder / "entry.json"
    command, last = pasteable(job.commands[0]), pasteable(job.commands[-1])
    if path.exists():
        before = json.loads(path.read_text())
        if before["command"] != command:
            there = before["command"]
            return f"the folder is that of another command, {there}; give another --output"
        if job.finished:
            if before.get("last_command") == last:
                return ""
            (job.folder / job.result).unlink()
            device = before["device"]  # what trained it
    entry = {"command": command, "last_command": last, "device": device}
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entry, indent=2) + "\n")
    except OSError as error:
        return f"the folder cannot be used: {error.strerror}"
    return ""


def is_held(folder: Path) -> bool:
    """Whether a run is in the folder."""
    try:
        workdir.hold(folder).close()
    except UserError:
        return True
    return False


def ending_with_parent(command: Sequence[str]) -> list[str]:
    """The command, wrapped so that it ends when its parent process ends, even by SIGKILL.

    On Linux only; elsewhere such a process goes on, and the next sweep waits for it.
    """
    leash = [sys.executable, "-c", LEASH] if sys.platform == "linux" else []
    return [*leash, *command]


def last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
