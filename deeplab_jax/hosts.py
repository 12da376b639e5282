"""Several processes as one run, over jax.distributed: how they join and what they exchange.

Process 0 writes; every process reads its own shard of the photographs and holds the whole state.
"""

import contextlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int64

from deeplab_jax.types import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join(wanted: bool) -> None:
    """Makes this process part of a run of several, where that is `wanted` or VARIABLES say so.

    They are HOST:PORT of process 0, the number of processes, and the number of this one, from 0.
    Where they are not set, the cluster (Slurm, a TPU pod, Open MPI) knows all three. Call it before
    JAX starts any device.
    """
    given = [os.environ.get(name) for name in VARIABLES]
    if not wanted and not any(given):
        return
    if any(given) and None in given:
        raise UserError(f"a process of several needs all of {', '.join(VARIABLES)}, or none")
    address, *numbers = given
    if address and not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{VARIABLES[0]} is {address} and must be HOST:PORT of process 0")
    for name, number in zip(VARIABLES[1:], numbers, strict=True):
        if number is not None and not number.isdigit():
            raise UserError(f"the variable {name} is {number!r} and must be a number")
    count, index = (None if number is None else int(number) for number in numbers)
    print("waiting for the other processes of this run", file=sys.stderr)
    try:
        jax.distributed.initialize(address, count, index)
    except (RuntimeError, ValueError) as error:
        if address is None and isinstance(error, ValueError):
            raise UserError(
                "--distributed asks the cluster for the other processes, and this is no cluster "
                "that JAX knows (Slurm, Open MPI, a TPU pod, Kubernetes): leave it out for one "
                f"process, or set {', '.join(VARIABLES)}"
            ) from None
        raise UserError(f"the processes of this run did not find each other: {error}") from None
    _connect()


def _connect() -> None:
    """Runs one collective operation over all devices at a point that all processes reach together.

    Gloo connects a group of devices when it is first used, and fails if a process is still
    compiling 30 s later. Connected devices wait for each other without a limit.
    """
    multihost_utils.sync_global_devices("connect")
    mesh, ones = Mesh(np.array(jax.devices()), ("all",)), np.ones(jax.local_device_count())
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("all",), ()))
    one_each = jax.make_array_from_process_local_data(spread, ones.astype(np.float32))
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=everywhere)(one_each))


def choose_devices(number: int | None) -> list[jax.Device]:
    """The first `number` devices, of one process; with None those of all processes."""
    devices = jax.devices()
    if number is not None and not 1 <= number <= len(devices):
        raise UserError(f"num_devices is {number}, and there are {len(devices)}")
    if number is not None and jax.process_count() > 1:
        raise UserError(f"num_devices {number} is for one process; leave it out, all are used")
    return devices[:number]


def describe(devices: Sequence[jax.Device]) -> str:
    """How many devices of which kind, or the processor's name and the cores this process has."""
    kind = devices[0].device_kind
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {kind}"
    with contextlib.suppress(OSError):
        named = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        kind = named[1] if named else platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    processes = jax.process_count()
    return f"{cores} cores of {kind}" + (f", {processes} processes" if processes > 1 else "")


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def all_reduce_sum(counts: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """The exact sum over all processes.

    Counts are sent as pairs of 32-bit numbers: JAX devices hold no int64.
    """
    if jax.process_count() == 1:
        return counts
    halves = multihost_utils.process_allgather(counts.view(np.uint32))
    return np.ascontiguousarray(halves).view(np.int64).sum(0)


def broadcast_from_first(tree: Any) -> Any:
    """The arrays of process 0, bit for bit, as NumPy arrays of at most 32 bits an element."""
    if jax.process_count() == 1:
        return tree
    arrays = jax.tree.map(np.asarray, tree)
    bits = jax.tree.map(lambda array: array.view(f"uint{8 * array.itemsize}"), arrays)
    sent = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(lambda x, like: np.asarray(x).view(like.dtype), sent, arrays)


@dataclass(frozen=True)
class ProcessShard:
    """Items p, p + n, p + 2n, ... of a source, for process p of n."""

    source: Any

    def __len__(self) -> int:
        return len(range(jax.process_index(), len(self.source), jax.process_count()))

    def __getitem__(self, index: int) -> Any:
        return self.source[jax.process_index() + index * jax.process_count()]
