"""Figures with axes: curves, confusion matrices, bars, sweeps, boundary bands.

Every function returns a matplotlib Figure, which a notebook shows and `save` writes. Series
differ in shape or hatching too, so that a figure can be read in grey.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from deeplab_jax.types import Image

LINES = (
    ("#1b3a6b", "o"),
    ("#d95f02", "s"),
    ("#1b9e77", "^"),
    ("#9c5fb5", "D"),
    ("#7f7f7f", "v"),
    ("#c0a000", "P"),
)
"""Colour and marker of each series in turn."""


def save(figure: Figure, path: Path, *, dpi: int = 120) -> None:
    """Writes a figure in the format of the path's ending."""
    figure.savefig(path, dpi=dpi)


def picture(pixels: Image) -> Figure:
    """A picture without axes, at its own size."""
    rows, columns = pixels.shape[:2]
    figure = Figure(figsize=(columns / 100, rows / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels)
    axes.axis("off")
    return figure


def plain(text: str) -> str:
    """The text with dollar signs escaped: matplotlib reads a formula between two of them.

    >>> plain("car $50")
    'car \\\\$50'
    """
    return text.replace("$", r"\$")


def curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, learning rate and mean IoU over the updates, from the lines of metrics.jsonl.

    A loss logged often is drawn with its running median, since single updates scatter.
    """
    panels = {"loss": "loss", "learning_rate": "learning rate", "mean_iou": "mean IoU (val)"}
    series = {
        name: np.array([(r["step"], r[name]) for r in records if r.get(name) is not None])
        for name in panels
    }
    shown = {name: points for name, points in series.items() if len(points)}
    count = max(len(shown), 1)
    figure = Figure(figsize=(5 * count, 3.5), layout="constrained")
    for axes, (name, points) in zip(
        figure.subplots(1, count, squeeze=False)[0], shown.items(), strict=False
    ):
        color, marker = LINES[0]
        steps, values = points.T
        many = len(points) >= 15
        faint = {"alpha": 0.35, "label": "each logged update"} if name == "loss" and many else {}
        style = {"color": color, "marker": None if many else marker, "linewidth": 1.2, **faint}
        axes.plot(steps, values, clip_on=False, **style)  # markers at update 0 are not cut off
        if faint:
            axes.plot(
                steps,
                running_median(values, window=2 * max(len(values) // 40, 3) + 1),
                color=LINES[1][0],
                label="running median",
            )
            axes.legend()
        axes.set(xlabel="update", ylabel=panels[name], xlim=(0, None))
        if name == "mean_iou":
            axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    return figure


def running_median(values: Float[np.ndarray, " n"], *, window: int = 15) -> np.ndarray:
    """Median of each value and its neighbours, fewer at the ends.

    >>> running_median(np.array([1.0, 9.0, 2.0, 3.0]), window=3).tolist()
    [5.0, 2.0, 3.0, 2.5]
    """
    reach = window // 2
    return np.array(
        [np.median(values[max(i - reach, 0) : i + reach + 1]) for i in range(len(values))]
    )


def confusion(
    matrix: Int64[np.ndarray, "c c"], class_names: Sequence[str], *, source: str = "network"
) -> Figure:
    """Where the pixels of each class went, as shares of its row (the truth), in percent.

    `source` says who predicted.
    """
    count = len(class_names)
    total = matrix.sum(1, keepdims=True)
    shares = 100 * np.divide(matrix, total, out=np.full(matrix.shape, np.nan), where=total > 0)
    side = min(2.5 + 0.45 * count, 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    names = [plain(name) for name in class_names]
    size = 9 if count <= 25 else 5
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    axes.set(xlabel=f"predicted ({plain(source)})", ylabel="truth")
    figure.colorbar(drawn, label="% of the true class's pixels", shrink=0.8)
    for row, column in np.ndindex(shares.shape) if count <= 25 else ():
        share = shares[row, column]
        if share >= 0.5:
            color = "white" if share > 55 else "black"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=color, size=7)
    return figure


def class_bars(scores: Mapping[str, Float[np.ndarray, " c"]], class_names: Sequence[str]) -> Figure:
    """IoU of each class, a bar for each entry of `scores`; a class that never occurs has none.

    The mean of each entry over its classes is drawn as a vertical line.
    """
    height = 0.8 / len(scores)
    figure = Figure(figsize=(7, 1.6 + 0.32 * len(class_names)), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(class_names))
    for i, (label, values) in enumerate(scores.items()):
        color = LINES[i % len(LINES)][0]
        mean = float(np.nanmean(values))
        axes.barh(
            positions + (i + 0.5) * height - 0.4,
            np.nan_to_num(values),
            height,
            color=color,
            hatch=("", "///", "...", "xx")[i % 4],
            edgecolor="white",
            label=f"{plain(label)} (mean {mean:.3f})",
        )
        axes.axvline(mean, color=color, linestyle=("--", ":", "-.", "-")[i % 4], linewidth=1.2)
    axes.set_yticks(positions, [plain(name) for name in class_names])
    axes.invert_yaxis()
    axes.set(xlabel="IoU (lines: mean IoU)", xlim=(0, 1))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=min(len(scores), 2), frameon=False)
    return figure


def trimap(
    bands: Mapping[str, Sequence[Float[np.ndarray, " widths"]]], *, boundary: str = "void"
) -> Figure:
    """Mean IoU in bands of 1, 2, ... pixels around boundaries; NaN where a band is empty.

    An entry of `bands` is a run: the network's curve, dashed, and after it the refined one, if
    there is one.
    """
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, (label, run) in enumerate(bands.items()):
        color, marker = LINES[i % len(LINES)]
        for values, style, remark in zip(
            run, ("--", "-"), ("before CRF", "after CRF"), strict=False
        ):
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                style,
                color=color,
                marker=marker,
                markevery=(i, 5),
                markersize=5,
                markerfacecolor="white" if remark == "before CRF" else color,
                label=f"{plain(label)}, {remark}",
            )
    around = {"void": "void pixels", "classes": "class boundaries"}[boundary]
    axes.set(xlabel=f"width of the band around {around} (pixels)", ylabel="mean IoU (val)")
    axes.set_xlim(0, None)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def sweep(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Figure:
    """Mean IoU of each group of runs: a dot a seed before and after the CRF, a bar their mean.

    A group is (scores before, scores after), the second empty where no CRF was run.
    """
    names = [textwrap.fill(plain(name), 14, break_long_words=False) for name in groups]
    longest = max(len(line) for name in names for line in name.splitlines())
    width = max(1.3, 0.11 * longest)
    figure = Figure(figsize=(2.5 + width * len(groups), 4.5), layout="constrained")
    axes = figure.subplots()
    for side, (remark, (color, marker)) in enumerate(
        zip(("before CRF", "after CRF"), LINES, strict=False)
    ):
        offset = -0.15 if side == 0 else 0.15
        label = remark
        for x, scores in enumerate(group[side] for group in groups.values()):
            if len(scores) == 0:
                continue
            axes.plot(
                np.full(len(scores), x + offset),
                scores,
                marker,
                color=color,
                markerfacecolor="white" if side == 0 else color,
                markersize=7,
                label=label,
            )
            label = None
            axes.hlines(np.mean(scores), x + offset - 0.12, x + offset + 0.12, color=color)
    axes.set_xticks(range(len(groups)), names)
    axes.set(ylabel="mean IoU (val)", xlim=(-0.6, len(groups) - 0.4))
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(
        loc="outside upper center", ncols=2, title="marker: a seed, line: mean", frameon=False
    )
    return figure


def network(
    stages: Sequence[tuple[str, int, int]],
    rates: Sequence[int],
    *,
    scales: Sequence[float] = (1.0,),
    crf: bool = True,
) -> Figure:
    """A drawing of a network: scales, trunk, parallel branches, fusion, enlargement and CRF.

    A stage is (name, output stride, rate of its kernels). The height of a box is that of its map;
    the dots of a branch are the taps of its kernel.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set(xlim=(-0.6, len(stages) + 7.3), ylim=(-2.3, 2.3), aspect="equal")
    arrow = {"arrowstyle": "->"}

    def box(x: float, height: float, text: str, color: str) -> None:
        axes.add_patch(Rectangle((x - 0.31, -height / 2), 0.62, height, fc=color, ec="black"))
        axes.text(x, -height / 2 - 0.12, text, ha="center", va="top", fontsize=7.5)

    for i, scale in enumerate(sorted(scales)):
        told = i == len(scales) - 1
        text = f"photograph\nat {', '.join(f'{s:g}' for s in scales)}" if told else ""
        box(0.1 * (i + 1 - len(scales)), 3.2 * scale, text, "#c9d6e8")
    steps = [("sum, maximum\nover scales" if len(scales) > 1 else "sum", 1.0, "#d9c9e8")]
    steps += [("8 x bilinear,\nsoftmax", 3.2, "#c9e8d0")]
    steps += [("CRF", 3.2, "#8fc9a0")] if crf else []
    for i, (name, stride, rate) in enumerate(stages):
        holes = f"\nrate {rate}" if rate > 1 else ""
        text = f"{name}\nstride {stride}{holes}"
        box(i + 1.4, max(3.2 / stride**0.5, 1.0), text, "#e8e0c9")
        axes.annotate("", (i + 1.09, 0), (i + 0.71 if i else 0.31, 0), arrowprops=arrow)
    last = len(stages) + 0.4
    for i, rate in enumerate(rates):
        y = 1.5 - 3 * (i + 0.5) / len(rates)
        taps = np.linspace(-0.5, 0.5, 3) * rate / max(rates)
        across, down = np.meshgrid(last + 1.6 + taps, y + 0.45 * taps)
        color, marker = LINES[i % len(LINES)]
        axes.plot(across.ravel(), down.ravel(), marker, color=color, markersize=3)
        axes.text(last + 2.35, y, f"rate {rate}", va="center", fontsize=7.5)
        axes.annotate("", (last + 1.0, y), (last + 0.35, 0), arrowprops=arrow)
        axes.annotate("", (last + 3.6, 0), (last + 3.05, y), arrowprops=arrow)
    for i, (text, height, color) in enumerate(steps):
        x = last + 4 + 1.15 * i
        box(x, height, text, color)
        if i:
            axes.annotate("", (x - 0.31, 0), (x - 0.84, 0), arrowprops=arrow)
    return figure
