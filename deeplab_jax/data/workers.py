"""Crops from worker processes, in order, through memory that is shared with them.

Worker w of n makes the crops w, w + n, w + 2 n, ... of a sequence and has a ring of slots to write
them into. Pixels do not pass through pipes: a worker sends a message when a crop is written, and
receives one when its slot is free again. grain's own workers allocate new shared memory for every
message, which costs as much as the augmentation.
"""

import atexit
import contextlib
import ctypes
import math
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.types import UserError

Crop = tuple[UInt8[np.ndarray, "size size channels"], UInt8[np.ndarray, "size size"]]


def slots_of(memory: Any, shape: tuple[int, int, int]) -> Sequence[Crop]:
    """Views of shared memory, an array of bytes, as crops of so many rows, columns and channels."""
    rows, columns, channels = shape
    slots = np.frombuffer(memory, np.uint8).reshape(-1, rows * columns * (channels + 1))
    images, labels = np.split(slots, [rows * columns * channels], axis=1)
    return [(i.reshape(shape), x.reshape(shape[:2])) for i, x in zip(images, labels, strict=True)]


def read_in_processes(
    make: Callable[[int], Crop],
    length: int,
    *,
    workers: int,
    shape: tuple[int, int, int],
    ahead: int,
) -> Generator[Crop, None, None]:
    """`make` of 0, 1, ... `length - 1`, about `ahead` of them before they are asked for; `shape` is
    that of a photograph. What is yielded is overwritten later: copy it before the next is asked
    for. A UserError where a worker process was killed; whatever `make` raised."""
    context = multiprocessing.get_context("spawn")
    slots = max(2, math.ceil(ahead / workers))
    pipes, rings, processes = [], [], []
    size = shape[0] * shape[1] * (shape[2] + 1)
    stop = partial(kill, processes)
    # At exit multiprocessing would join workers that wait for this process, for ever.
    atexit.register(stop)
    try:
        for worker in range(workers):
            here, there = context.Pipe()
            memory = context.RawArray(ctypes.c_uint8, slots * size)  # freed with its last process
            arguments = (make, range(worker, length, workers), memory, shape, there)
            processes.append(context.Process(target=work, args=arguments, daemon=True))
            processes[-1].start()
            there.close()  # so that the pipe closes when the worker ends
            pipes.append(here)
            rings.append(slots_of(memory, shape))
        for number in range(length):
            turn, worker = divmod(number, workers)
            try:
                fault = pipes[worker].recv()
            except (EOFError, ConnectionError):
                raise UserError(
                    "a process that reads photographs was killed; if the machine ran out of memory "
                    "give fewer --workers, and type the same command again"
                ) from None
            if fault is not None:
                raise fault
            yield rings[worker][turn % slots]
            if number + workers * slots < length:
                with contextlib.suppress(ConnectionError):  # told by the next recv
                    pipes[worker].send_bytes(b"free")
    finally:
        stop()
        atexit.unregister(stop)


def kill(processes: Sequence[BaseProcess]) -> None:
    """Kills the workers, which have nothing to clean up."""
    for process in processes:
        process.kill()
        process.join()


def work(
    make: Callable[[int], Crop],
    numbers: Sequence[int],
    memory: Any,
    shape: tuple[int, int, int],
    pipe: Connection,
) -> None:
    """What a worker process does until its crops are made or the pipe breaks with its parent.
    Signals are ignored: Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM all of
    a job, but the parent alone decides when its workers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ring = slots_of(memory, shape)
    with contextlib.suppress(EOFError, OSError):
        for turn, number in enumerate(numbers):
            if turn >= len(ring):
                pipe.recv_bytes()
            fault, slot = None, ring[turn % len(ring)]
            try:
                slot[0][:], slot[1][:] = make(number)
            except Exception as error:  # raised again by the parent
                error.add_note(traceback.format_exc())
                fault = error
            pipe.send(fault)
