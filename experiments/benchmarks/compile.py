"""Compile a preset's update and prediction for a GPU or TPU that is not there, and check them.

    python experiments/benchmarks/compile.py h100 small
    python experiments/benchmarks/compile.py h100 resnet101_aspp_msc -- --model.dtype bfloat16
    python experiments/benchmarks/compile.py v5e:2x4 small --programs update

Targets: h100, and TPU topologies such as v5e:2x2, v5e:2x4, v6e:2x2, v5p:2x2x1, by the compilers of
the extra `aot`. Nothing runs. Printed are the kernels that a run starts, the inside of loops once,
the largest window of a convolution, and the peak memory of a device.

The status is 1 where a program breaks a rule: an update takes over the memory of its state and adds
up each gradient over the devices once; on GPUs no convolution has a window above its kernel, which
would be a weight gradient that cuDNN's backward filter cannot take, and no floats are scattered,
which gives other bits each time.
"""

import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deeplab_jax import evaluation, segmenter, start, train
from deeplab_jax.config import Config, completed
from deeplab_jax.models.deeplab import build, weight_name
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import Batch

FREE = """after-all bitcast constant domain get-tuple-element iota opt-barrier parameter
  partition-id replica-id tuple""".split()
"""Instructions that start nothing on the device."""
CLASSES, SIZE = 21, (375, 500)
SCATTERS = ("scatter", "select-and-scatter")


@dataclass(frozen=True)
class Options:
    target: Annotated[str, tyro.conf.Positional]
    """h100, or a TPU's topology."""
    preset: Annotated[str, tyro.conf.Positional]
    """One of train_voc.py."""
    changes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Behind "--": options of train_voc.py."""
    programs: tuple[Literal["update", "prediction"], ...] = ("update", "prediction")
    """The update of a run, and the probabilities of one photograph."""
    devices: int | None = None
    """Of a TPU: all of the topology. Of a GPU: 1."""


def main(options: Options) -> None:
    config = tyro.cli(
        Config,
        default=PRESETS[options.preset],
        args=list(options.changes),
        config=(tyro.conf.AvoidSubcommands,),
    )
    config = replace(config, model=completed(config.model))
    devices = devices_of(options.target, options.devices)
    broken = []
    for name in options.programs:
        since = time.perf_counter()
        lower = update if name == "update" else prediction
        lowered, kernels, more = lower(config, devices)
        compiled = lowered.compile()
        memory = compiled.memory_analysis()
        alias = memory.alias_size_in_bytes
        parts = ("argument", "output", "temp", "generated_code")
        peak = sum(getattr(memory, f"{part}_size_in_bytes") for part in parts) - alias
        found = {"program": name, "seconds": round(time.perf_counter() - since, 1), "peak": peak}
        found |= {"alias": alias, **more, **summary(compiled.as_text(), kernels)}
        print(json.dumps(found), flush=True)
        broken += [f"{name}: {why}" for why in broken_rules(found, options.target)]
    sys.exit("\n".join(broken) if broken else 0)


def devices_of(target: str, number: int | None) -> list[Any]:
    """The first `number` devices of a target, or all of its topology, to compile for.

    The CPU stays JAX's own platform. Autotuning is off, since it measures kernels on a device.
    """
    gpu = not re.match(r"v\d", target)
    flags = [os.environ.pop("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0" if gpu else ""]
    if joined := " ".join(flags).strip():  # libtpu takes blanks for the name of a file
        os.environ["XLA_FLAGS"] = joined
    jax.config.update("jax_platforms", "cpu")
    if not gpu:
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        found = topologies.get_topology_desc(platform="tpu", topology_name=target).devices
        return list(found[:number])
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    described = Path(__file__).with_name(f"{target}.textproto")
    if not described.exists():
        sys.exit(f"error: there is no target {target}; known are h100, and TPUs such as v5e:2x4")
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name=target,
        target_config=described.read_text(),
        topology=f"1x1x{number or 1}",
    ).devices


Lowered = tuple[Any, Mapping[str, int], dict[str, int]]
"""A program, rows of the network's kernels by their layers, and what else is told of it."""


def update(config: Config, devices: list[Any]) -> Lowered:
    """The step as train_voc.py runs it: pmapped, its state donated."""
    model = segmenter.trained_network(config, CLASSES)
    _, optimizer = segmenter.solver_of(config)
    weights = np.ones(CLASSES) if config.class_balance else None
    step = start.update_of(config, model, optimizer, class_weights=weights)
    state = train.state_shapes(model, optimizer)
    slots = (len(devices), 1, -(-config.batch_size // len(devices)))
    pixels = (*slots, config.data.crop_size, config.data.crop_size)
    image, labels = np.empty((*pixels, 3), np.uint8), np.empty(pixels, np.uint8)
    placed = train.shapes_on(devices, state, Batch(image, labels, np.empty(slots, np.int32)))
    more = {
        "devices": len(devices),
        "state": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "gradients": sum(4 * leaf.size for leaf in jax.tree.leaves(state.params)),
    }
    return train.on_devices(step, devices).lower(*placed), kernels_of(state.params), more


def prediction(config: Config, devices: list[Any]) -> Lowered:
    """Probabilities of a photograph of SIZE, as predict.py finds them."""
    model = build(CLASSES, **asdict(config.model))
    variables = train.variable_shapes(model)
    here = NamedSharding(Mesh(np.array(devices[:1]), ("photographs",)), PartitionSpec())
    rows, columns = evaluation.array_size(model, SIZE, config.eval.pad_to)
    image = jax.ShapeDtypeStruct((1, rows, columns, 3), jnp.uint8)
    given = (variables, image, jax.ShapeDtypeStruct((1, 2), jnp.int32))
    shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), given)
    fits = config.eval.pad_to is not None and max(SIZE) <= config.eval.pad_to
    canvas = None if fits else shaped[-1]
    lowered = evaluation.batch_outputs.lower(model, *shaped, canvas, scales=config.eval.scales)
    return lowered, kernels_of(variables["params"]), {}


def kernels_of(params: Any) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = ((weight_name(path), leaf.shape[0]) for path, leaf in leaves)
    return {n.removesuffix("/kernel"): rows for n, rows in names if n.endswith("/kernel")}


Instruction = tuple[str, str, str]
"""Shape, operation, and the rest of a line of a compiled program."""


def computations(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each computation of a program; that of the name "" is run."""
    found, current = {}, []
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-$]+) \(.*\{$", line):
            current = found.setdefault("" if header[1] else header[2], [])
        elif named := re.match(r"\s+(?:ROOT )?%?[\w.\-$]+ = (.*?) ([a-z][\w\-]*)\((.*)$", line):
            current.append((named[1], named[2], named[3]))
    return found


def started(program: Mapping[str, list[Instruction]], name: str = "") -> Iterator[Instruction]:
    """What one run starts, with the inside of loops once and of all branches."""
    for instruction in program[name]:
        _, operation, rest = instruction
        if operation in ("while", "conditional", "call", "async-start"):
            called = re.findall(r"[={ ]%?([\w.\-$]+)", rest.partition("), ")[2])
            for computation in program.keys() & set(called):
                yield from started(program, computation)
        elif operation not in FREE and not operation.endswith(("-done", "-update")):
            yield instruction


def num_bytes(shape: str) -> int:
    """Bytes of a shape as XLA writes it, `bf16[10,41,41,256]{3,2,1,0}` or a tuple of such."""
    return sum(
        max(int(bits or 8) // 8, 1) * math.prod(int(n) for n in sizes.split(",") if n)
        for bits, sizes in re.findall(r"[a-z]+(\d*)\w*\[([\d,]*)\]", shape)
    )


def summary(text: str, kernels: Mapping[str, int]) -> dict[str, Any]:
    """What is told of a compiled program; `kernels` has the rows of the network's kernels."""
    program = computations(text)
    running = list(started(program))
    windows, above = [0], 0
    everywhere = [i for body in program.values() for i in body]
    for _, operation, rest in everywhere:
        window = re.search(r"window=\{size=([\dx]+)", rest)
        if window and (operation == "convolution" or "conv" in rest.partition("target=")[2][:20]):
            windows.append(max(map(int, window[1].split("x"))))
            path = re.search(r'op_name="([^"]*)"', rest)
            layers = [n for n in kernels if path and f"/{n}/" in path[1]]
            above += bool(layers) and windows[-1] > kernels[max(layers, key=len)]
    scattered = [shape for shape, operation, _ in everywhere if operation in SCATTERS]
    return {
        "kernels": len(running),
        "largest_window": max(windows),
        "windows_above_kernel": above,
        "float_scatters": sum(bool(re.match(r"\(?b?f\d", shape)) for shape in scattered),
        "all_reduced": sum(num_bytes(s) for s, o, _ in running if o.startswith("all-reduce")),
    }


def broken_rules(found: Mapping[str, Any], target: str) -> list[str]:
    """What of a program must not be."""
    broken, gpu = [], not re.match(r"v\d", target)
    if gpu and found["windows_above_kernel"]:
        broken.append(f"{found['windows_above_kernel']} windows are above their kernels")
    if found["program"] != "update":
        return broken
    if gpu and found["float_scatters"]:
        broken.append(f"floats are scattered {found['float_scatters']} times")
    if found["alias"] < found["state"]:
        broken.append("the state is copied")
    if found["devices"] > 1 and not 0.9 < found["all_reduced"] / found["gradients"] < 1.1:
        broken.append(f"{found['all_reduced']} of {found['gradients']} bytes are added up")
    return broken


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
