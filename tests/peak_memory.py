"""Memory of this process alone.

getrusage's ru_maxrss begins, in a process that another one starts, at what that other one held:
a small child of a large pytest would seem to need nothing.
"""

from pathlib import Path


def peak_memory() -> int:
    """Bytes this process has had at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
