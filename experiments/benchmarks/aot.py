"""Compile a run's programs for an accelerator that this machine does not have, and report them.

    python experiments/benchmarks/aot.py h100 resnet101_aspp
    python experiments/benchmarks/aot.py h100 small --programs update --model.dtype bfloat16
    python experiments/benchmarks/aot.py v5e:2x4 small --programs update crf

Targets: h100, and TPU topologies such as v5e:2x2, v5e:2x4, v6e:2x2, v5p:2x2x1, v4:2x2x1. The
compilers come with the extra `aot`. Nothing runs: the times are rooflines, that is the longer of
analytic FLOP over the chip's peak and bytes over its bandwidth. Each cell (target, preset, program
and options) is compiled in a process of its own, which `--limit` ends. With --results FILE.jsonl a
line for each cell is appended, cells that are there are skipped, and a table is written beside it,
FILE.md. Expected on two cores: 2 minutes for an update of resnet101_aspp on h100.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import math
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import chips
import hlo
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.extend.core import jaxprs_in_params
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from deeplab_jax import compilation, runs, train
from deeplab_jax import config as configs
from deeplab_jax import crf as crfs
from deeplab_jax import evaluation as evaluations
from deeplab_jax.config import Config
from deeplab_jax.crf import backends
from deeplab_jax.models import deeplab
from deeplab_jax.models.deeplab import weight_name
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import Batch

sys.path.insert(0, str(Path(__file__).parents[1]))
import cli  # noqa: E402

ProgramName = Literal["update", "inference", "evaluation", "crf"]

IN_CHILD = "--in-child"
"""First argument of the process that compiles one cell."""


@dataclass(frozen=True)
class Options:
    """Of one cell, beside the preset's own."""

    num_classes: int = 21
    devices: int | None = None
    """Of a TPU: all of the topology. Of a GPU: 1."""
    photographs: int | None = None
    """On a device at once, in an update and in evaluation; the rest of its share of an update is
    accumulated. None: all of its share, and as many as evaluation takes where memory allows."""
    size: tuple[int, int] = (375, 500)
    """Rows and columns of a photograph, for inference, evaluation and the CRF."""
    iterations: int = 10
    """Of the CRF."""
    crf_method: Literal["lattice", "exact"] = "lattice"
    """How the CRF's kernels are applied; exact is pair by pair."""
    mapped_by: train.MappedBy = "pmap"
    """How an update is spread over devices; train_voc.py uses pmap."""
    unchecked: bool = False
    """Leave out the check that an update is finite, to count what it costs."""
    xla_flags: str = ""
    """More flags for XLA, such as "--xla_dump_to=DIR"."""
    label: str = ""
    """Kept with the result, to tell apart what was measured before and after a change."""


DEFAULTS = json.loads(json.dumps(dataclasses.asdict(Options())))
"""As they stand in a line of results; a line from before an option was added lacks it."""


@dataclass(frozen=True)
class Arguments:
    """Behind the target and the preset."""

    options: Annotated[Options, tyro.conf.arg(name="")] = Options()
    config: Annotated[Config, tyro.conf.arg(name="")] = Config()
    programs: tuple[ProgramName, ...] = ("update", "inference", "evaluation", "crf")
    limit: float = 600.0
    """CPU seconds of all cores for each cell, which other work on the machine leaves alone. One
    that hangs is ended after ten times as many on the clock."""
    results: Path | None = None
    """File of JSON lines."""
    text: Path | None = None
    """Folder for the text of the compiled programs."""


def parse(words: list[str]) -> tuple[str, str, Arguments]:
    """Target, name of the preset, and the rest of a command line.

    Raises:
      SystemExit: a target, preset or option that does not exist.
    """
    if len(words) < 2 or words[0].startswith("-") or words[1].startswith("-"):
        raise SystemExit(f"error: usage: aot.py TARGET PRESET [options]\n\n{__doc__}")
    target, preset, *words = words
    if target.split(":")[0] not in chips.CHIPS:
        raise SystemExit(
            f"error: there is no target {target}; chips are {', '.join(chips.CHIPS)}, "
            "and a TPU has its topology behind it, as in v5e:2x4"
        )
    if preset not in PRESETS:
        raise SystemExit(f"error: there is no preset {preset}; all: {', '.join(PRESETS)}")
    default = Arguments(config=PRESETS[preset])
    if not cli.asks_for_help(words):
        words = cli.in_our_words(Arguments, words)
    parsed = tyro.cli(Arguments, args=words, default=default, description=__doc__, config=cli.STYLE)
    return target, preset, parsed


def main(words: list[str]) -> None:
    target, preset, parsed = parse(words)
    changed = _changes(*map(configs.to_dict, (PRESETS[preset], parsed.config)))
    for program in parsed.programs:
        cell = {"target": target, "preset": preset, "program": program}
        cell |= {"changed": changed, **dataclasses.asdict(parsed.options)}
        cell = json.loads(json.dumps(cell))
        if parsed.results and is_done(parsed.results, cell, parsed.limit):
            print(f"{target} {preset} {program}: in {parsed.results} already")
            continue
        result = compile_in_child(cell, parsed)
        print(report(result), flush=True)
        print(json.dumps(result), flush=True)
        if parsed.results:
            parsed.results.parent.mkdir(parents=True, exist_ok=True)
            with parsed.results.open("a") as file:
                file.write(json.dumps(without_convolutions(result)) + "\n")
            parsed.results.with_suffix(".md").write_text(table(read_lines(parsed.results)))


def without_convolutions(result: dict[str, Any]) -> dict[str, Any]:
    """What a file of results keeps: the list of convolutions would be nine tenths of it."""
    return {name: value for name, value in result.items() if name != "convolutions"}


def _changes(plain: dict, given: dict, prefix: str = "") -> dict[str, Any]:
    """Options that differ from the preset's, nested ones with dots."""
    changes = {}
    for name, value in given.items():
        if isinstance(value, dict):
            changes |= _changes(plain[name], value, f"{prefix}{name}.")
        elif value != plain[name]:
            changes[prefix + name] = value
    return changes


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The results in a file; a line that was cut off by a kill is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


def is_done(path: Path, cell: dict[str, Any], limit: float) -> bool:
    """Whether the file holds the cell, compiled, or not compiled within as long a limit."""
    lines = [line for line in read_lines(path) if DEFAULTS | line["cell"] == cell]
    return any("seconds" in line or line.get("limit", 0) >= limit for line in lines)


def compile_in_child(cell: dict[str, Any], parsed: Any) -> dict[str, Any]:
    """The result of a cell; `limit` where it did not end, `error` where it did not compile."""
    work = {"cell": cell, "config": configs.to_dict(parsed.config)}
    work |= {"text": str(parsed.text) if parsed.text else None, "limit": parsed.limit}
    command = [sys.executable, __file__, IN_CHILD, json.dumps(work)]
    environment = chips.environment(cell["target"], cell["xla_flags"])
    how = {"capture_output": True, "text": True, "timeout": 10 * parsed.limit, "env": environment}
    try:
        done = subprocess.run(command, **how)
    except subprocess.TimeoutExpired:
        return {"cell": cell, "limit": parsed.limit}
    if done.returncode == -signal.SIGXCPU:
        return {"cell": cell, "limit": parsed.limit}
    if done.returncode:
        errors = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", done.stderr, re.MULTILINE)
        why = errors[-1] if errors else f"exit {done.returncode}: {done.stderr.strip()[-300:]}"
        return {"cell": cell, "error": why[:500]}
    return {"cell": cell, **json.loads(done.stdout.splitlines()[-1])}


def compile_cell(work: dict[str, Any]) -> None:
    """In the child: compiles, and prints the result as the last line."""
    cell, config = work["cell"], configs.from_dict(Config, work["config"])
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(work["limit"]), resource.RLIM_INFINITY))
    compilation.choose_precision(config.precision)
    if config.deterministic:
        folder = tempfile.mkdtemp(prefix="programs")
        atexit.register(shutil.rmtree, folder)
        compilation.make_deterministic(Path(folder))
    options = Options(**{f.name: cell[f.name] for f in dataclasses.fields(Options)})
    devices = chips.devices_of(cell["target"], options.devices)
    if cell["program"] in ("inference", "crf"):
        devices = devices[:1]
    build = {"update": update, "inference": inference, "evaluation": evaluation, "crf": crf}
    lower, flop, kernels, more = build[cell["program"]](config, options, devices)
    then, worked = time.perf_counter(), time.process_time()
    lowered = lower()
    lowering = time.perf_counter() - then
    compiled = lowered.compile()
    seconds, worked = time.perf_counter() - then, time.process_time() - worked
    text = compiled.as_text()
    if work["text"]:
        folder = Path(work["text"])
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{cell['target'].replace(':', '_')}_{cell['preset']}_{cell['program']}.txt"
        (folder / name).write_text(text)
    result = {"seconds": round(seconds, 1), "cpu_seconds": round(worked, 1)}
    result |= {"lowering": round(lowering, 1), "jax": jax.__version__}
    result |= {"devices": len(devices), "memory": memory_of(compiled), **more}
    result |= hlo.summary(text, kernels)
    chip, dtype = chips.chip_of(cell["target"]), config.model.dtype
    if chip.platform == "tpu":  # a program for a GPU does not state it
        once = int(compiled.cost_analysis()["bytes accessed"])  # with one turn of each loop
        result["bytes"] = once + result["repeated_bytes"]
    result |= {"flop": flop / len(devices), **roofline(chip, dtype, flop / len(devices), result)}
    print(json.dumps(result))


def memory_of(compiled: Any) -> dict[str, int]:
    """Bytes on a device; `peak` is what must be there while the program runs."""
    stats = compiled.memory_analysis()
    names = ("argument", "output", "temp", "alias", "generated_code")
    sizes = {name: getattr(stats, f"{name}_size_in_bytes") for name in names}
    peak = sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]
    return {**sizes, "peak": peak + sizes["generated_code"]}


def roofline(chip: chips.Chip, dtype: str, flop: float, result: dict) -> dict[str, Any]:
    compute, moving = 1e3 * flop / chip.peak(dtype), 1e3 * result["bytes"] / chip.bandwidth
    return {
        "compute_ms": compute,
        "memory_ms": moving,
        "roofline_ms": max(compute, moving),
        "chip_memory": chip.memory,
        "source": chip.source,
    }


def kernels_of(variables: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the network's kernels by the names of their layers."""
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    names = ((weight_name(path), leaf.shape) for path, leaf in leaves)
    return {n.removesuffix("/kernel"): shape for n, shape in names if n.endswith("/kernel")}


def shaped(tree: Any, sharding: Any) -> Any:
    """Shapes and types of a tree, as arrays that lie there."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


def update(config: Any, options: Options, devices: list):
    """The step as train_voc.py runs it: pmapped, its state donated."""
    model = runs.trained_network(config, options.num_classes)
    weights = np.ones(options.num_classes) if config.class_balance else None
    share = -(-config.batch_size // len(devices))
    accumulation = -(-share // (options.photographs or share))
    at_once = -(-share // accumulation)
    _, optimizer = runs.solver_of(config)
    step = runs.make_step(
        config, model, optimizer, class_weights=weights, check_finite=not options.unchecked
    )
    variables = train.variable_shapes(model)
    state = jax.eval_shape(lambda v: train.init_state(v, optimizer), variables)
    mesh = Mesh(np.array(devices), (train.AXIS,))
    state = shaped(state, NamedSharding(mesh, PartitionSpec()))
    places = (len(devices), accumulation, at_once)
    crop = (config.data.crop_size,) * 2
    batch = Batch(
        image=np.empty((*places, *crop, 3), np.uint8),
        labels=np.empty((*places, *crop), np.uint8),
        sample=np.empty(places, np.int32),
    )
    batch = shaped(batch, NamedSharding(mesh, PartitionSpec(train.AXIS)))
    flop = 3 * accumulation * len(devices) * forward_flop(model, variables, (at_once, *crop))

    def lower():
        mapped = train.on_devices(step, devices, mapped_by=options.mapped_by)
        return mapped.lower(state, batch)

    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    more = {"accumulation": accumulation, "photographs": at_once, "state_bytes": state_bytes}
    return lower, flop, kernels_of(variables), more


def inference(config: Any, options: Options, devices: list):
    """Probabilities of one photograph on one device, as predict.py finds them."""
    return outputs(config, options, devices, 1, what="probs")


def evaluation(config: Any, options: Options, devices: list):
    """Labels of some photographs on each device, as evaluate_voc.py finds them."""
    at_once = options.photographs or evaluations.AT_ONCE
    return outputs(config, options, devices, at_once, what="labels")


def outputs(config: Any, options: Options, devices: list, at_once: int, *, what: str):
    model = deeplab.build(options.num_classes, **dataclasses.asdict(config.model))
    variables = train.variable_shapes(model)
    mesh = Mesh(np.array(devices), ("photographs",))
    spread = NamedSharding(mesh, PartitionSpec("photographs"))
    size = evaluations.array_size(model, options.size, config.eval.pad_to)
    number = at_once * len(devices)
    image = jax.ShapeDtypeStruct((number, *size, 3), jnp.uint8, sharding=spread)
    sizes = jax.ShapeDtypeStruct((number, 2), jnp.int32, sharding=spread)
    fits = config.eval.pad_to is not None and max(options.size) <= config.eval.pad_to
    flop = forward_flop(model, variables, image.shape[:3])
    given = shaped(variables, NamedSharding(mesh, PartitionSpec()))

    def lower():
        how = {"scales": config.eval.scales, "flip": config.eval.flip, "what": what}
        return evaluations.batch_outputs.lower(
            model, given, image, sizes, None if fits else sizes, **how
        )

    flop *= sum(s * s for s in config.eval.scales) * (1 + config.eval.flip)
    return lower, flop, kernels_of(variables), {"photographs": at_once}


def crf(config: Any, options: Options, devices: list):
    """Marginals of one photograph: lattices included, with room for three vertices a pixel, or by
    the exact kernels, whose FLOP are those of their products with the marginals."""
    here = SingleDeviceSharding(devices[0])
    pixels = math.prod(options.size)
    lead = () if options.crf_method == "exact" else (1,)
    shape = (*lead, *options.size, options.num_classes)
    image = jax.ShapeDtypeStruct((*shape[:-1], 3), jnp.uint8, sharding=here)
    scores = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=here)
    if options.crf_method == "exact":
        marginals = functools.partial(
            backends.exact_marginals,
            params=crfs.RESNET101,
            num_iterations=options.iterations,
            normalization="symmetric",
        )
        flop = flop_of(jax.make_jaxpr(marginals)(image, scores).jaxpr)
    else:
        marginals = functools.partial(
            crfs.marginals,
            num_iterations=options.iterations,
            vertex_bound=3 * pixels,
            row_bound=pixels,
        )
        flop = 0.0
    return lambda: jax.jit(marginals).lower(image, scores), flop, {}, {"photographs": 1}


def forward_flop(model: Any, variables: Any, shape: tuple[int, ...]) -> float:
    """Of the convolutions of the forward pass, on `shape` (photographs, rows, columns)."""
    inputs = jax.ShapeDtypeStruct((*shape, 3), jnp.float32)
    return flop_of(jax.make_jaxpr(model.apply)(variables, inputs).jaxpr)


def flop_of(jaxpr: Any) -> float:
    """Multiplications and additions of the convolutions and products; of branches the largest."""
    total = 0.0
    for equation in jaxpr.eqns:
        out = math.prod(equation.outvars[0].aval.shape)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * out * math.prod(kernel) / features
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * out * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        elif "branches" in equation.params:
            total += max(flop_of(branch.jaxpr) for branch in equation.params["branches"])
        else:
            for inner in jaxprs_in_params(equation.params):
                total += equation.params.get("length", 1) * flop_of(inner)
    return total


def report(result: dict[str, Any]) -> str:
    """A cell in words and a table of its convolutions."""
    cell = result["cell"]
    name = f"{cell['target']} {cell['preset']} {cell['program']}"
    if "seconds" not in result:
        why = (
            f"did not end within {result['limit']:g} CPU s"
            if "limit" in result
            else result["error"]
        )
        return f"{name}: {why}"
    memory = {k: v / 1e6 for k, v in result["memory"].items()}
    calls = ", ".join(f"{n} {name}" for name, n in result["custom_calls"].items()) or "none"
    moved = ", ".join(f"{n} {b / 1e6:.1f} MB" for n, b in result["collectives"].items()) or "none"
    lines = [
        f"{name}: compiled in {result['seconds']} s, {result['cpu_seconds']} s of all cores "
        f"(jax {result['jax']})",
        f"  memory of {result['chip_memory'] / 1e6:.0f} MB: peak {memory['peak']:.0f}, arguments "
        f"{memory['argument']:.0f}, temporaries {memory['temp']:.0f}, aliased "
        f"{memory['alias']:.0f}",
        f"  {result['kernels']} kernels ({result['launches']} launches), {result['fusions']} "
        f"fusions, {result['float_scatters']} scatters of floats, {result['conditionals']} "
        "conditionals",
        f"  library calls: {calls}",
        f"  collectives: {moved}",
        f"  {result['flop'] / 1e9:.1f} GFLOP {result['compute_ms']:.2f} ms, "
        f"{result['bytes'] / 1e6:.0f} MB {result['memory_ms']:.2f} ms; peaks: {result['source']}",
        "  number  pass             window    dilation  stride  layout            call",
    ]
    for c in result["convolutions"]:
        window, dilation, stride = (
            "x".join(map(str, c[k])) or "-" for k in ("window", "dilation", "stride")
        )
        lines.append(
            f"  {c['number']:6}  {c['gradient']:15}  {window:8}  {dilation:8}  {stride:6}  "
            f"{c['layout']:16}  {c['call'] or 'own kernel'}  {c['shape'][:60]}"
        )
    return "\n".join(lines)


COLUMNS = (
    "target", "preset", "program", "options", "devices", "compile s", "CPU s", "peak MB", "kernels",
    "launches", "conditionals", "largest window", "above kernel", "float scatters", "aliased MB",
    "GB moved", "all-reduce MB", "roofline ms",
)  # fmt: skip


def table(lines: list[dict[str, Any]]) -> str:
    """All cells as a Markdown table, the last line of each."""
    latest = {json.dumps(line["cell"], sort_keys=True): line for line in lines}
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(line) for line in latest.values())]
    text = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    return f"""# Programs compiled for accelerators

Made by `experiments/benchmarks/aot.py` without a device: nothing ran. Kernels are what a program
names once, launches count loops; the roofline is the longer of analytic FLOP over the chip's peak
and the compiled program's bytes over its bandwidth. GPU programs are compiled without autotuning.

{text}
"""


def _row(line: dict[str, Any]) -> tuple[Any, ...]:
    cell = line["cell"]
    names = ("photographs", "size", "iterations", "crf_method", "mapped_by", "unchecked")
    names += ("xla_flags", "label")
    others = {k: cell[k] for k in names if cell.get(k, DEFAULTS[k]) != DEFAULTS[k]}
    given = cell["changed"] | others
    options = ", ".join(f"{k} {v}" for k, v in given.items())
    start = (cell["target"], cell["preset"], cell["program"], options)
    if "seconds" not in line:
        error = " ".join(line.get("error", "").split())[:60]
        why = f"no end in {line['limit']:g} CPU s" if "limit" in line else error
        return (*start, cell["devices"] or "", why.replace("|", "/"), *[""] * (len(COLUMNS) - 6))
    return (
        *start,
        line["devices"],
        line["seconds"],
        line.get("cpu_seconds", ""),
        f"{line['memory']['peak'] / 1e6:.0f}",
        line["kernels"],
        line["launches"],
        line["conditionals"],
        line["largest_window"],
        line["windows_above_kernel"],
        line["float_scatters"],
        f"{line['memory']['alias'] / 1e6:.1f}",
        f"{line['bytes'] / 1e9:.2f}",
        f"{line['collectives'].get('all-reduce', 0) / 1e6:.1f}",
        f"{line['roofline_ms']:.2f}",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == [IN_CHILD]:
        compile_cell(json.loads(sys.argv[2]))
    else:
        main(sys.argv[1:])
