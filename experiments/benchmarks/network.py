"""Time the network against the same network in PyTorch, by turns, in processes of their own.

    python experiments/benchmarks/network.py --torch-python OTHER/bin/python
    python experiments/benchmarks/network.py --cases "train resnet101_aspp MSC 321 b1" --threads 1
    python experiments/benchmarks/network.py --suite accelerator

Both sides compute with the same weights and inputs; logits or losses are compared first, and a case
where they differ is not timed. With one thread the CPU time of the process counts, which other work
on the machine hardly touches; with more the wall time does, where the spread (maximum over minimum)
says whether it can be trusted. A ratio above 1 says that ours is faster. "channels_last" and
"compiled" (torch.compile, channels_last) are PyTorch's other forms; "lax" and "dots" are ours,
which uses the faster one by default. Dropout is left out on both sides. Linux only.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

from deeplab_jax.config import completed
from deeplab_jax.models.deeplab import build, is_classifier, make_inputs, weight_name
from deeplab_jax.presets import PRESETS
from deeplab_jax.train import variable_shapes

HERE = Path(__file__).parent
CLASSES = 21
OURS = ("ours", "lax", "dots")
CASES = {
    "cpu": [
        *("forward resnet101_aspp 321 b1", "forward resnet101_aspp 513 b1"),
        *("forward resnet101_aspp MSC 321 b1", "train resnet101_aspp 321 b1"),
        *("train resnet101_aspp 321 b2", "train resnet101_aspp MSC 321 b1"),
        *("forward vgg16_aspp_l 321 b1", "train vgg16_aspp_l 321 b1"),
        *("forward vgg16_large_fov 321 b1", "train vgg16_large_fov 321 b1"),
    ],
    "accelerator": [
        f"{work} resnet101_aspp {size}{half}"
        for work, sizes in (
            ("train", [f"{m}321 b{b}" for m, b in product(("MSC ", ""), (10, 16, 32))]),
            ("forward", ["513 b8"]),
        )
        for size, half in product(sizes, (" bf16", ""))
    ],
}
"""Logits at stride 8, or a whole update; network, crop and batch."""
FORMS = {
    "cpu": ("ours", "eager", "channels_last"),
    "accelerator": ("ours", "lax", "channels_last", "compiled"),
}


@dataclass(frozen=True)
class Options:
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


def main(options: Options) -> None:
    jax.config.update("jax_platforms", "cpu")  # the accelerators are the children's
    suite = CASES[options.suite]
    names = [options.cases] if options.cases in suite else [n for n in suite if options.cases in n]
    if not names:
        sys.exit(f"no case of the suite {options.suite} has {options.cases!r} in its name")
    forms = options.forms or FORMS[options.suite]
    tried = subprocess.run([options.torch_python, "-c", "import torch"], capture_output=True)
    if tried.returncode:
        print("torch is not installed (extra benchmark): nothing to compare with")
        forms = tuple(form for form in forms if form in OURS)
    threads = options.threads if options.suite == "cpu" else (0,)
    head = f"{'case':34}{'thr':>3} {'form':14}{'median':>11}{'min':>10}{'spread':>7}{'ratio':>8}"
    print(f"{head}{'memory':>11}{'ours/':>6}{'first':>10}{'photographs':>13} devices")
    for name, number in product(names, threads):
        for devices in options.devices if name.startswith("train") else (1,):
            case = read_case(name) | {"threads": number, "devices": devices, "rate": 2.5e-4}
            rows = compare(case, forms, options)
            show(rows, "cpu" if number == 1 else "wall")
            print(json.dumps(rows), flush=True)


def read_case(name: str) -> dict[str, Any]:
    work, network, *rest = name.split()
    crop, batch = (word for word in rest if word.lstrip("b").isdigit())
    dtype = "bfloat16" if "bf16" in rest else "float32"
    case = {"case": name, "work": work, "network": network, "msc": "MSC" in rest}
    return case | {"crop": int(crop), "batch": int(batch[1:]), "dtype": dtype}


def compare(case: dict[str, Any], forms: tuple[str, ...], options: Options) -> list[dict]:
    """A row for each form of the case, timed by turns."""
    case = case | {"batch": case["batch"] * case["devices"]}
    with tempfile.TemporaryDirectory() as folder:
        write_work(case, Path(folder) / "work.npz")
        children, rows = [], []
        for form in forms:
            children.append(start(case | {"form": form}, folder, options.torch_python))
            rows.append(case | {"form": form} | answer(children[-1]))
        check_same(rows, Path(folder))
        took = [[] for _ in children]
        for _ in range(options.repeats):
            for child, times in zip(children, took, strict=True):
                print(file=child.stdin, flush=True)
                times.append(answer(child))
        for child in children:
            child.communicate()
    for row, times in zip(rows, took, strict=True):
        row["memory"] = times[-1]["memory"]
        for clock in ("cpu", "wall"):
            seconds = [t[clock] for t in times]
            row[clock] = statistics.median(seconds)
            row[f"{clock}_min"], row[f"{clock}_max"] = min(seconds), max(seconds)
    return rows


def start(case: dict[str, Any], folder: str, torch_python: str) -> subprocess.Popen:
    """A process that does one piece of work for each line that it is sent."""
    ours = case["form"] in OURS
    script = HERE / ("network_jax.py" if ours else "network_torch.py")
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return subprocess.Popen(
        [sys.executable if ours else torch_python, script, json.dumps(case), folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ({"XLA_FLAGS": flags} if case["threads"] == 1 else {}),
    )


def answer(child: subprocess.Popen) -> dict[str, Any]:
    line = child.stdout.readline()
    if not line:
        raise ChildProcessError(f"{child.args[1].name} ended, see above")
    return json.loads(line)


def write_work(case: dict[str, Any], path: Path) -> None:
    """Weights, photographs and labels, drawn; the first layer brings 0..255 down to about 1."""
    rng = np.random.default_rng(0)
    model = build(CLASSES, **asdict(completed(PRESETS[case["network"]].model)))
    leaves = jax.tree_util.tree_leaves_with_path(variable_shapes(model))
    names = {weight_name(path): leaf.shape for (_, *path), leaf in leaves}
    arrays = {name: draw(name, shape, rng).astype(np.float32) for name, shape in names.items()}
    size = (case["batch"], case["crop"], case["crop"])
    images = rng.integers(0, 256, (*size, 3), np.uint8)
    labels = rng.integers(0, CLASSES, size, np.uint8)
    labels[:, : case["crop"] // 20] = 255
    np.savez(path, **arrays, images=images, labels=labels, inputs=np.asarray(make_inputs(images)))


def draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = name.rsplit("/", 1)[1]
    if kind == "kernel":
        deviation = 0.01 if is_classifier(name) else np.sqrt(2 / np.prod(shape[:3]))
        return rng.normal(size=shape) * deviation * (0.01 if "conv1" in name else 1.0)
    if kind == "scale":
        return np.full(shape, 0.2 if "branch2c" in name else 1.0)
    return np.ones(shape) if kind == "var" else np.zeros(shape)


def check_same(rows: list[dict], folder: Path) -> None:
    """Refuses forms that compute something else than the first does.

    Deep networks of random weights double the rounding at every layer, and their first updates
    amplify it: in bfloat16 later losses may differ by a twentieth, though the first may not.
    """
    full = rows[0]["dtype"] == "float32"
    logits, first_loss, later_loss = (1e-2, 1e-3, 1e-3) if full else (1e-1, 5e-3, 5e-2)
    for row in rows[1:]:
        if row["work"] == "train":
            ours, other = np.array(rows[0]["losses"]), np.array(row["losses"])
            found = np.abs(ours - other) / np.abs(ours)
            most = np.array([first_loss] + [later_loss] * (len(found) - 1))
        else:
            ours, other = (np.load(folder / f"{r['form']}.npy") for r in (rows[0], row))
            found, most = np.abs(ours - other).max() / ours.std(), logits
        row["difference"] = float(np.max(found))
        if not np.all(found <= most):
            raise SystemExit(f"{row['case']}: {row['form']} differs by {row['difference']:.2g}")


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


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
