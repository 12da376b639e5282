"""Many runs from one command: processes over devices, resumable, and a table of what they gave.

A job is a list of commands for one work folder, run one after another in processes of their own.
It is finished when its last command has left its file, so the same sweep typed again does only
what is missing; a job that fails is reported and stops no other. A result of another last
command does not count: the commands run again, and training finds that it is finished.
"""

import csv
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deeplab_jax import workdir
from deeplab_jax.types import UserError

Slot = Mapping[str, str]
"""Environment variables that give a process its device."""

LEASH = (
    "import ctypes, os, signal, sys; PR_SET_PDEATHSIG = 1; "
    "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
"""A process that becomes the command behind it, and gets SIGTERM when its parent ends (Linux)."""

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


def run(
    jobs: Sequence[Job],
    slots: Sequence[Slot],
    *,
    device: str = "",
    say: Callable[[str], None] = print,
) -> dict[Path, str]:
    """Runs what is not finished, one job a slot at a time; folder -> reason of those that failed.

    Output goes to log.txt in each folder. When this process ends, so do its children on Linux.
    """
    failed: dict[Path, str] = {}
    taken: list[float] = []
    waiting = iter(enumerate(jobs, 1))  # all slots take from it
    leash = [sys.executable, "-c", LEASH] if sys.platform == "linux" else []

    def carry_out(job: Job, slot: Slot, named: str) -> tuple[str, str]:
        """What became of a job, and why it failed if it did."""
        if reason := claim(job, device):
            return "failed", reason
        while is_held(job.folder):  # by a process that outlived its sweep, or another sweep's
            time.sleep(1)
        if job.finished:
            return "found finished", ""
        say(named)
        path = job.folder / "log.txt"
        for command in job.commands:
            say(pasteable(command, slot))
            with path.open("a") as log:
                print("$", pasteable(command, slot), file=log, flush=True)
                output = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
                done = subprocess.run([*leash, *command], env={**os.environ, **slot}, **output)
            if done.returncode:
                lines = path.read_text(errors="replace").splitlines()
                last = next(line for line in reversed(lines) if line.strip())
                return "failed", f"{last} (exit status {done.returncode})"
        return "finished", ""

    def work(slot: Slot) -> None:
        for number, job in waiting:
            since, named = time.monotonic(), f"run {number} of {len(jobs)}, {job.folder}:"
            outcome, reason = carry_out(job, slot, named)
            if reason:
                failed[job.folder] = reason
            seconds = time.monotonic() - since
            taken.extend([seconds] * (outcome == "finished"))
            left = statistics.mean(taken) * (len(jobs) - number) / len(slots) if taken else 0
            when = f", all done in about {datetime.timedelta(seconds=round(left))}" if left else ""
            say(f"{named} {outcome} after {seconds:.0f} s{reason and ': '}{reason}{when}")

    with ThreadPoolExecutor(len(slots)) as pool:
        list(pool.map(work, slots))
    return failed


def claim(job: Job, device: str) -> str:
    """Records the job's commands and device in its folder; returns why it cannot, or "".

    A result of another last command is removed.
    """
    path, command = job.folder / "entry.json", pasteable(job.commands[0])
    entry = {"command": command, "device": device, "results": {}}
    if path.exists():
        entry = json.loads(path.read_text())
        if entry["command"] != command:
            there = entry["command"]
            return f"the folder is that of another command, {there}; give another --output"
    last = pasteable(job.commands[-1])
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if entry["results"].get(job.result) != last:
            (job.folder / job.result).unlink(missing_ok=True)
        entry["results"][job.result] = last
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


class Result(NamedTuple):
    """What one run of a sweep gave: a line of runs.csv, where settings are columns of their own."""

    row: str
    """Label of its row in the table."""
    seed: int
    parameters: int
    training_images_per_second: float
    """The median."""
    training_seconds: float | None
    """With compiling."""
    mean_iou: float
    """Of the network."""
    mean_iou_after_crf: float | None
    command: str
    device: str
    settings: Mapping[str, str]
    """What tells the rows apart."""


def scores(results: Sequence[Result]) -> dict[str, tuple[list[float], list[float]]]:
    """For figures.sweep: mean IoU before and after the CRF of the runs of each row."""
    rows: dict[str, tuple[list[float], list[float]]] = {}
    for result in results:
        before, after = rows.setdefault(result.row, ([], []))
        before.append(result.mean_iou)
        if result.mean_iou_after_crf is not None:
            after.append(result.mean_iou_after_crf)
    return rows


def markdown(
    results: Sequence[Result], *, published: Mapping[str, tuple[float | None, float | None]]
) -> str:
    """The table with mean and standard deviation over seeds, in percent.

    `published` holds mean IoU in percent (before, after the CRF) by row, None for what does not
    compare; columns that would be empty are left out.
    """
    lines = []
    for label, (before, after) in scores(results).items():
        of_row = [result for result in results if result.row == label]
        speed = statistics.median(r.training_images_per_second for r in of_row)
        paper, paper_after = published.get(label, (None, None))
        lines.append(
            {
                "": label,
                **{k: either(r.settings[k] for r in of_row) for k in of_row[0].settings},
                "parameters": f"{of_row[0].parameters:,}",
                "images/s in training": f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}",
                "seeds": f"{len(of_row)}",
                "mean IoU %": percent(before),
                "mean IoU after CRF %": percent(after),
                "paper %": f"{paper:.2f}" if paper else "",
                "paper after CRF %": f"{paper_after:.2f}" if paper_after else "",
            }
        )
    names = [name for name in lines[0] if any(line[name] for line in lines)]
    cells = [names, ["---"] * len(names), *([line[name] for name in names] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


def percent(shares: Sequence[float]) -> str:
    """Mean and deviation in percent.

    >>> percent([0.5, 0.7]), percent([0.5]), percent([])
    ('60.00 ± 14.14', '50.00', '')
    """
    values = [100 * share for share in shares]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}" if values else ""


def either(values: Iterable[object]) -> str:
    """Each value once, in order."""
    return " or ".join(dict.fromkeys(map(str, values)))


def comparisons(results: Sequence[Result]) -> list[str]:
    """Sentences: does a row differ from the one above, and from the first, by more than chance?"""
    rows = list(scores(results).items())
    if len(results) == len(rows):
        return ["one seed a row: what seeds alone would change is not known"]
    found = []
    for i, (label, of_row) in enumerate(rows[1:]):
        for other, of_other in {0: rows[0], i: rows[i]}.values():
            for when, a, b in zip(("before CRF", "after CRF"), of_other, of_row, strict=True):
                if a and b:
                    found.append(f"{label} against {other}, {when}: {compare(a, b)}.")
    return found


def compare(a: Sequence[float], b: Sequence[float]) -> str:
    """What b gains over a, and whether that is more than what seeds alone make.

    It is where every seed of one is better than every seed of the other, and the means differ by
    more than the best and the worst seed of either.

    >>> compare([0.50, 0.51], [0.55, 0.53])
    '+3.50 points, more than the spread of the seeds (2.00)'
    """
    difference = statistics.mean(b) - statistics.mean(a)
    text = f"{100 * difference:+.2f} points"
    if min(len(a), len(b)) < 2:
        return f"{text}, of one seed, which tells no spread"
    spread = max(max(side) - min(side) for side in (a, b))
    apart = (min(b) > max(a) or max(b) < min(a)) and abs(difference) > spread
    word = "more than" if apart else "within"
    return f"{text}, {word} the spread of the seeds ({100 * spread:.2f})"


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """A line for each run; mean IoU as shares, empty where there is no number."""
    lines = [result._asdict() for result in results]
    for line in lines:  # a rate without its dagger is a number
        line |= {name: value.replace("†", "") for name, value in line.pop("settings").items()}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
