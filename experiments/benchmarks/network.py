"""Time the network against the same network in PyTorch, by turns, in processes of their own.

    python experiments/benchmarks/network.py --torch-python OTHER/bin/python
    python experiments/benchmarks/network.py --cases "train resnet101" --threads 1
    python experiments/benchmarks/network.py --suite accelerator

Both sides compute with the same weights and inputs; logits or losses are compared first, and a case
where they differ is not timed. With one thread the CPU time of the process counts, which other work
on the machine hardly touches; with more the wall time does, where the spread (maximum over minimum)
says whether it can be trusted. A ratio above 1 says that ours is faster. "channels_last" and
"compiled" (torch.compile, channels_last) are PyTorch's other forms; "lax" and "dots" are ours,
which uses the faster one by default. Dropout is left out on both sides. Linux only.
"""

import dataclasses
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from deeplab_jax import config as configs
from deeplab_jax import train
from deeplab_jax.models.deeplab import build, is_classifier, make_inputs, weight_name
from deeplab_jax.presets import PRESETS

HERE = Path(__file__).parent
CLASSES = 21
RATE = 2.5e-4
OURS = ("ours", "lax", "dots")


@dataclass(frozen=True)
class Case:
    work: Literal["forward", "train"]
    """Logits at stride 8; a whole update."""
    network: str = "resnet101_aspp"
    msc: bool = False
    crop: int = 321
    batch: int = 1
    dtype: str = "float32"

    @property
    def name(self) -> str:
        msc = " MSC" if self.msc else ""
        half = " bf16" if self.dtype == "bfloat16" else ""
        return f"{self.work} {self.network}{msc} {self.crop} b{self.batch}{half}"


CPU = [
    Case("forward"),
    Case("forward", crop=513),
    Case("forward", msc=True),
    Case("train"),
    Case("train", batch=2),
    Case("train", msc=True),
    Case("forward", "vgg16_aspp_l"),
    Case("train", "vgg16_aspp_l"),
    Case("forward", "vgg16_large_fov"),
    Case("train", "vgg16_large_fov"),
]
ACCELERATOR = [
    *(
        Case("train", msc=msc, batch=batch, dtype=dtype)
        for msc in (True, False)
        for batch in (10, 16, 32)
        for dtype in ("bfloat16", "float32")
    ),
    *(Case("forward", crop=513, batch=8, dtype=dtype) for dtype in ("bfloat16", "float32")),
]


@dataclass(frozen=True)
class Args:
    suite: Literal["cpu", "accelerator"] = "cpu"
    cases: str = ""
    """Only the case of this name, as in the table, or else those whose name contains it."""
    forms: tuple[str, ...] = ()
    """ours, lax, dots, eager, channels_last, compiled; by default what the suite is for."""
    threads: tuple[int, ...] = (1, 2)
    """On a CPU: cores that both sides are pinned to."""
    devices: tuple[int, ...] = (1,)
    """On accelerators: number of devices, each with the whole batch."""
    repeats: int = 5
    torch_python: str = sys.executable
    """The Python that has torch, where it is another one."""


class Child:
    """A process that does one piece of work for each line that it is sent."""

    def __init__(self, case: dict, folder: Path, args: Args):
        ours = case["form"] in OURS
        script = HERE / ("network_jax.py" if ours else "network_torch.py")
        python = sys.executable if ours else args.torch_python
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment = os.environ | ({"XLA_FLAGS": flags} if case["threads"] == 1 else {})
        self.process = subprocess.Popen(
            [python, script, json.dumps(case), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise ChildProcessError(f"{self.process.args[1].name} ended, see above")
        return json.loads(line)

    def work(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def write_work(case: Case, path: Path, devices: int) -> None:
    """Weights, photographs and labels, drawn; the first layer brings 0..255 down to about 1."""
    rng = np.random.default_rng(0)
    fields = configs.completed(PRESETS[case.network].model)
    shapes = train.variable_shapes(build(CLASSES, **dataclasses.asdict(fields)))
    arrays = {}
    for (_, *tree_path), leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = weight_name(tree_path)
        arrays[name] = draw(name, leaf.shape, rng).astype(np.float32)
    size = (case.batch * devices, case.crop, case.crop)
    images = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.integers(0, CLASSES, size, np.uint8)
    labels[:, : case.crop // 20] = 255
    inputs = np.asarray(make_inputs(images))
    np.savez(path, **arrays, images=images, labels=labels, inputs=inputs)


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = name.rsplit("/", 1)[1]
    if kind == "kernel":
        deviation = 0.01 if is_classifier(name) else np.sqrt(2 / np.prod(shape[:3]))
        return rng.normal(size=shape) * deviation * (0.01 if "conv1" in name else 1.0)
    if kind == "scale":
        return np.full(shape, 0.2 if "branch2c" in name else 1.0)
    return np.ones(shape) if kind == "var" else np.zeros(shape)


def compare(case: Case, args: Args, threads: int, devices: int) -> list[dict]:
    """A row for each form of the case, timed by turns."""
    default = {
        "cpu": ("ours", "eager", "channels_last"),
        "accelerator": ("ours", "lax", "channels_last", "compiled"),
    }
    forms = args.forms or default[args.suite]
    if not has_torch(args.torch_python):
        forms = tuple(form for form in forms if form in OURS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_work(case, folder / "work.npz", devices)
        common = dataclasses.asdict(case) | {"threads": threads, "devices": devices, "rate": RATE}
        common["batch"] *= devices
        children, rows = [], []
        for form in forms:
            child = Child(common | {"form": form}, folder, args)
            rows.append({"case": case.name, "threads": threads, "form": form} | child.answer())
            children.append(child)
        check_same(rows, folder, case)
        took = [[] for _ in children]
        for _ in range(args.repeats):
            for child, times in zip(children, took, strict=True):
                times.append(child.work())
        for child in children:
            child.end()
    for row, times in zip(rows, took, strict=True):
        row |= {"devices": devices, "batch": common["batch"], "memory": times[-1]["memory"]}
        for clock in ("cpu", "wall"):
            seconds = [t[clock] for t in times]
            row[clock] = statistics.median(seconds)
            row[f"{clock}_min"], row[f"{clock}_max"] = min(seconds), max(seconds)
    return rows


def check_same(rows: list[dict], folder: Path, case: Case) -> None:
    """Refuses forms that compute something else than the first does.

    Deep networks of random weights double the rounding at every layer, and their first updates
    amplify it: in bfloat16 later losses may differ by a twentieth, though the first may not.
    """
    full = case.dtype == "float32"
    logits, first_loss, later_loss = (1e-2, 1e-3, 1e-3) if full else (1e-1, 5e-3, 5e-2)
    for row in rows[1:]:
        if case.work == "train":
            pairs = zip(rows[0]["losses"], row["losses"], strict=True)
            first, *later = [abs(a - b) / abs(a) for a, b in pairs]
            row["difference"] = float(np.max([first, *later]))
            same = first <= first_loss and max(later) <= later_loss
        else:
            ours, other = (
                np.load(folder / f"{r['form']}.npy").astype(np.float32) for r in (rows[0], row)
            )
            row["difference"] = float(np.abs(ours - other).max() / ours.std())
            same = row["difference"] <= logits
        if not same:
            raise SystemExit(f"{case.name}: {row['form']} differs by {row['difference']:.2g}")


def has_torch(python: str) -> bool:
    if python == sys.executable:
        return importlib.util.find_spec("torch") is not None
    return subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 0


def show(rows: list[dict], clock: str) -> None:
    """One line a form; ratios are over the first one of ours."""
    ours = rows[0]
    for row in rows:
        line = f"{row['case']:34}{row['threads'] or '':>3} {row['form']:14}"
        line += f"{row[clock]:9.3f} s {row[f'{clock}_min']:9.3f}"
        line += f"{row[f'{clock}_max'] / row[f'{clock}_min']:7.2f}"
        line += f"{row[clock] / ours[clock]:8.2f}{row['memory'] / 2**20:8.0f} MB"
        line += f"{ours['memory'] / row['memory']:6.2f}{row['first']:8.1f} s"
        line += f"{row['batch'] / row['wall']:9.1f}/s on {row['devices']}"
        print(line, flush=True)


def main(args: Args) -> None:
    jax.config.update("jax_platforms", "cpu")  # the accelerators are the children's
    suite = CPU if args.suite == "cpu" else ACCELERATOR
    cases = [c for c in suite if args.cases == c.name] or [c for c in suite if args.cases in c.name]
    if not cases:
        raise SystemExit(f"no case of the suite {args.suite} has {args.cases!r} in its name")
    if not has_torch(args.torch_python):
        print("torch is not installed (extra benchmark): nothing to compare with")
    threads = args.threads if args.suite == "cpu" else (0,)
    head = f"{'case':34}{'thr':>3} {'form':14}{'median':>11}{'min':>10}{'spread':>7}{'ratio':>8}"
    print(f"{head}{'memory':>11}{'ours/':>6}{'first':>10}{'photographs':>13} devices")
    for case in cases:
        for number in threads:
            for devices in args.devices if case.work == "train" else (1,):
                rows = compare(case, args, number, devices)
                show(rows, "cpu" if number == 1 else "wall")
                print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import cli

    main(cli.parse(Args, __doc__))
