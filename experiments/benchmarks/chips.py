"""Accelerators to compile for without having one: peak rates and compilers' settings."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.experimental import topologies

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Chip:
    """Peak rates of one device, dense, as its maker states them."""

    platform: str
    """Of JAX: cuda or tpu."""
    bfloat16: float
    """FLOP a second of bfloat16 products."""
    float32: float
    """FLOP a second of float32 products at default precision: TF32 on a GPU, one bfloat16 pass on a
    TPU."""
    bandwidth: float
    """Bytes a second between the device and its memory."""
    memory: float
    """Bytes."""
    source: str

    def peak(self, dtype: str) -> float:
        return self.bfloat16 if dtype == "bfloat16" else self.float32


_TPU = "Google Cloud, TPU system architecture, {}"


def _tpu(name: str, flop: float, bandwidth: float, memory: float) -> Chip:
    return Chip("tpu", flop, flop, bandwidth, memory, _TPU.format(name))


CHIPS = {
    "h100": Chip(
        "cuda", 989e12, 494.5e12, 3.35e12, 84929347584, "NVIDIA H100 Tensor Core GPU datasheet, SXM"
    ),
    "v4": _tpu("TPU v4", 275e12, 1.228e12, 32 * 2**30),
    "v5e": _tpu("TPU v5e", 197e12, 0.819e12, 16 * 2**30),
    "v5p": _tpu("TPU v5p", 459e12, 2.765e12, 95 * 2**30),
    "v6e": _tpu("TPU v6e", 918e12, 1.64e12, 32 * 2**30),
}


def chip_of(target: str) -> Chip:
    """The chip of a target such as `h100` or `v5e:2x4`.

    Raises:
      KeyError: a chip that is not in CHIPS.
    """
    return CHIPS[target.split(":")[0]]


def environment(target: str, xla_flags: str = "") -> dict[str, str]:
    """What a process that compiles for a target has in its environment when it imports JAX.

    The CPU stays JAX's own platform, so that it looks for no accelerator. Autotuning is off, since
    it measures kernels on a device. XLA_FLAGS is left out where it would be empty: libtpu takes a
    value of blanks for the name of a file, and ends the process.
    """
    flags = [os.environ.get("XLA_FLAGS", ""), xla_flags]
    more = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    if chip_of(target).platform == "cuda":
        flags.append("--xla_gpu_autotune_level=0")
        more = {"CUDA_VISIBLE_DEVICES": "-1"}
    others = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    joined = " ".join(flags).strip()
    given = {"XLA_FLAGS": joined} if joined else {}
    return {**others, "JAX_PLATFORMS": "cpu", **given, **more}


def devices_of(target: str, number: int | None) -> list[Any]:
    """The first `number` devices of a target, or all of its topology, to compile for.

    A GPU has no topology in its name: None is one device.

    Raises:
      ValueError: the topology has fewer.
    """
    if chip_of(target).platform == "tpu":
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=target).devices)
    else:
        devices = topologies.get_topology_desc(
            platform="cuda",
            topology_name=target,
            target_config=(HERE / f"{target}.textproto").read_text(),
            topology=f"1x1x{number or 1}",
        ).devices
    if number is not None and number > len(devices):
        raise ValueError(f"{target} has {len(devices)} devices, and {number} were asked for")
    return list(devices[:number])
