"""A child process that does a piece of work for each line it is sent, and reports its time.

It serves to time two programs by turns on the same cores, so that only one runs at a time.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def serve(prepare: Callable[[dict, Path], tuple[Callable[[], float], dict]]) -> None:
    """The child: `prepare(case, folder)` gives the work, which returns a loss, and what is known.

    Under "memory" the latter may have a function that counts the bytes an accelerator gave.
    """
    case, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    if case["threads"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case["threads"]])
    then = time.perf_counter()
    work, known = prepare(case, folder)
    losses = [work()]
    known["first"] = time.perf_counter() - then
    losses += [work(), work()]  # two to warm up
    memory = known.pop("memory", peak_memory)
    say(known | {"losses": losses})
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        say(took | {"memory": memory()})


def leave(result: np.ndarray, folder: Path, case: dict) -> None:
    """Leaves the array that the first call gives where network.py compares it."""
    path = folder / f"{case['form']}.npy"
    if not path.exists():
        np.save(path, result)


def peak_memory() -> int:
    """Bytes of memory this process has had at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def say(answer: dict) -> None:
    print(json.dumps(answer), flush=True)
