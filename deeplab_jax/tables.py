"""What the runs of a sweep gave, as tables over seeds in Markdown and CSV."""

import csv
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """What one run of a sweep gave, read from its work folder."""

    label: str
    """Row of the table."""
    seed: int
    settings: Mapping[str, str]
    """What the table compares, as the trained model has it."""
    parameters: int
    images_per_second: float
    """Of training: the median of what metrics.jsonl holds."""
    seconds: float
    """Of training, compiling included."""
    before: float
    """Mean IoU of the network."""
    after: float | None
    """Mean IoU after the CRF; None where none was run."""
    command: str
    device: str


def group(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each row, in the order in which rows first occur."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        rows.setdefault(result.label, []).append(result)
    return rows


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is NaN for a single value.

    >>> mean_and_deviation([1.0, 3.0, 5.0])
    (3.0, 2.0)
    """
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def markdown(
    results: Sequence[Result], *, published: Mapping[str, tuple[float | None, float | None]]
) -> str:
    """The table with mean and standard deviation over seeds, in percent.

    `published` holds mean IoU in percent (before, after the CRF) by row; empty where the
    paper's numbers were not measured on these data.
    """
    rows = group(results)
    names = list(results[0].settings)
    after = [r.after for r in results if r.after is not None]
    head = ["", *names, "parameters", "images/s in training", "seeds", "mean IoU %"]
    head += ["mean IoU after CRF %"] * bool(after) + ["paper %", "paper after CRF %"] * bool(
        published
    )
    lines = [head, ["---"] * len(head)]
    for label, runs in rows.items():
        cells = [label, *(" or ".join(dict.fromkeys(r.settings[n] for r in runs)) for n in names)]
        cells += [f"{runs[0].parameters:,}"]
        cells += [f"{statistics.median(r.images_per_second for r in runs):.3g}", f"{len(runs)}"]
        cells += [percent([r.before for r in runs])]
        if after:
            cells += [percent([r.after for r in runs if r.after is not None])]
        if published:
            cells += [f"{v:.2f}" if v else "" for v in published.get(label, (None, None))]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def percent(values: Sequence[float]) -> str:
    """Mean and deviation of shares.

    >>> percent([0.5, 0.7]), percent([0.5]), percent([])
    ('60.00 ± 14.14', '50.00', '')
    """
    if not values:
        return ""
    mean, deviation = (100 * v for v in mean_and_deviation(values))
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def verdicts(results: Sequence[Result]) -> list[str]:
    """Sentences: does a row differ from the one above, and from the first, by more than chance?

    It does where every seed of one row is better than every seed of the other.
    """
    rows = list(group(results).items())
    found = []
    for i in range(1, len(rows)):
        label, runs = rows[i]
        for other, others in {0: rows[0], i - 1: rows[i - 1]}.values():
            for name, when in (("before", "before CRF"), ("after", "after CRF")):
                a, b = ([getattr(r, name) for r in side] for side in (others, runs))
                if None not in (*a, *b):
                    found.append(f"{label} against {other}, {when}: {compare(a, b)}.")
    return found


def compare(a: Sequence[float], b: Sequence[float]) -> str:
    """What b gains over a, and whether the seeds overlap.

    >>> compare([0.50, 0.52], [0.55, 0.53])
    '+3.00 points, more than the spread of the seeds'
    """
    difference = f"{100 * (sum(b) / len(b) - sum(a) / len(a)):+.2f} points"
    if min(len(a), len(b)) < 2:
        return f"{difference}, of one seed, which tells no spread"
    apart = min(b) > max(a) or max(b) < min(a)
    return f"{difference}, {'more than' if apart else 'within'} the spread of the seeds"


COLUMNS = {
    "label": "row",
    "images_per_second": "training_images_per_second",
    "seconds": "training_seconds",
    "before": "mean_iou",
    "after": "mean_iou_after_crf",
}
"""Fields of Result under names that explain themselves; the others keep theirs."""


def records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A line of runs.csv for each run; mean IoU as shares, empty where there is no number."""
    fields = [f.name for f in dataclasses.fields(Result) if f.name not in ("label", "settings")]
    return [
        {
            "row": result.label,
            **without_marks(result.settings),
            **{COLUMNS.get(name, name): getattr(result, name) for name in fields},
        }
        for result in results
    ]


def summaries(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A line of table.csv for each row; mean IoU as shares, NaN where there is no number."""
    return [
        {
            "row": label,
            **without_marks(runs[0].settings),
            "parameters": runs[0].parameters,
            "training_images_per_second": statistics.median(r.images_per_second for r in runs),
            "seeds": len(runs),
            **_named("mean_iou", [r.before for r in runs]),
            **_named("mean_iou_after_crf", [r.after for r in runs if r.after is not None]),
        }
        for label, runs in group(results).items()
    ]


def without_marks(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings without daggers, so that a column of numbers is one.

    >>> without_marks({"rates": "24†"})
    {'rates': '24'}
    """
    return {name: value.replace("†", "") for name, value in settings.items()}


def _named(name: str, values: Sequence[float]) -> dict[str, float]:
    mean, deviation = mean_and_deviation(values) if values else (math.nan, math.nan)
    return {f"{name}_mean": mean, f"{name}_std": deviation}


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Names in the first line, from the first mapping."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def mark_rates(rates: Sequence[int], map_side: int) -> str:
    """The rates, with a dagger where a 3x3 has become a 1x1.

    At a rate of the score map's side or more, eight of the nine taps read padding everywhere.

    >>> mark_rates((6, 20, 21), 21)
    '6, 20, 21†'
    """
    return ", ".join(f"{rate}†" if rate >= map_side else f"{rate}" for rate in rates)
