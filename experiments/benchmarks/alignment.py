"""Compare alignments of resizing: mean IoU, also near object boundaries, over seeds.

    python experiments/benchmarks/alignment.py
    python experiments/benchmarks/alignment.py --preset small --root camvid --boundary classes

Trains a preset once for each alignment and seed, scores it before and after the CRF, over whole
photographs and within 1 to 5 pixels of a boundary (trimap.py), and prints the means and standard
deviations as a table. The same command typed again does what is missing. The quickstart takes two
minutes a run on two CPU cores, small on CamVid fifteen.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

EXPERIMENTS = Path(__file__).parents[1]
WIDTHS = range(1, 6)


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--alignments", nargs="+", default=["half_pixel", "corners", "cells"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--root", help="data set; the preset's drawn scenes where none is given")
    parser.add_argument("--boundary", default="void", choices=["void", "classes"])
    parser.add_argument("--output", type=Path, default=Path("runs/alignment"))
    return parser.parse_known_args()


def main() -> None:
    options, of_training = parse()
    rows = {}
    for alignment in options.alignments:
        runs = []
        for seed in options.seeds:
            folder = options.output / f"{options.preset}_{alignment}_seed{seed}"
            data = ["--data.root", options.root] if options.root else []
            own = ["--model.alignment", alignment, "--seed", str(seed), *data, *of_training]
            run("train_voc.py", options.preset, *own, "--workdir", folder, to=folder / "score.json")
            run("evaluate_voc.py", folder, "--crf", to=folder / "evaluation.json")
            boundary = ["--boundary", options.boundary, "--max-width", str(max(WIDTHS))]
            run("trimap.py", folder, "--crf", *boundary, to=folder / "trimap.csv")
            runs.append(read(folder))
        rows[alignment] = np.array(runs)
    text = table(rows)
    (options.output / "table.md").write_text(text + "\n")
    print(text)


def run(script: str, *arguments: object, to: Path) -> None:
    """Runs the command unless its output file exists."""
    if not to.exists():
        command = [sys.executable, str(EXPERIMENTS / script), *map(str, arguments)]
        subprocess.run(command, check=True)


def read(folder: Path) -> np.ndarray:
    """[before, after the CRF], each mean IoU of whole photographs and of each band, in percent."""
    scores = json.loads((folder / "evaluation.json").read_text())
    with (folder / "trimap.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    found = []
    for name, after in (("network", "False"), ("network + CRF", "True")):
        bands = {int(x["width"]): float(x["mean_iou"]) for x in lines if x["crf"] == after}
        found.append([scores[name]["mean_iou"], *(bands[width] for width in WIDTHS)])
    return 100 * np.array(found)


def table(rows: dict[str, np.ndarray]) -> str:
    """A line for each alignment and side of the CRF; cells are mean and standard deviation."""
    lines = ["| alignment | CRF | mean IoU | " + " | ".join(f"{w} px" for w in WIDTHS) + " |"]
    lines.append("|---" * (3 + len(WIDTHS)) + "|")
    for alignment, runs in rows.items():
        for side, name in enumerate(("before", "after")):
            means, spread = runs[:, side].mean(0), runs[:, side].std(0, ddof=len(runs) > 1)
            cells = (f"{m:.1f} ± {s:.1f}" for m, s in zip(means, spread, strict=True))
            lines.append(f"| {alignment} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
