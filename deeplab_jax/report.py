"""report.html: one page that shows what a work folder holds and needs nothing but a browser.

Pictures are embedded, so the page can be sent as it is. Names come from users' data and are
escaped.
"""

import base64
import datetime
import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from deeplab_jax import workdir

WRONG = "Wrong pixels are red; white pixels have no label and do not count."
PICTURES = {
    "curves.png": ("Learning curves", "An update is one step of the optimizer."),
    "classes.png": ("IoU of each class", ""),
    "confusion.png": (
        "Confusion matrix",
        "A row is a true class; its numbers say where the pixels of that class went, in percent.",
    ),
    "sheet.png": (
        "Photographs of the scored split",
        f"Evenly spread over the split, not chosen by score. Numbers are class ids. {WRONG}",
    ),
    "failures.png": (
        "The photographs with the lowest mean IoU",
        f"The worst one first; photographs that look like a worse one are left out. {WRONG}",
    ),
    "crf.png": (
        "Before and after the CRF",
        f"The photographs that the CRF changes most, without those above. {WRONG}",
    ),
    "trimap.png": ("Mean IoU near boundaries", ""),
    "field_of_view.png": ("Which pixels a score depends on", ""),
}
"""Files of a work folder in the order they are shown, their titles, and how to read them."""

MEANINGS = {
    "mean_iou": "mean of the classes' IoU; IoU is the overlap of prediction and truth, divided by "
    "their union, over all pixels of the split (1 is perfect)",
    "mean_iou_all_classes": "the same, where a class that the truth lacks counts as 0",
    "mean_iou_present_or_predicted": "the same, where a class that the truth lacks counts as 0 if "
    "it is predicted",
    "pixel_accuracy": "share of the pixels with the right class",
    "mean_accuracy": "mean over classes of the share of a class's pixels that are right",
    "frequency_weighted_iou": "IoU of the classes weighted by how many pixels they have",
    "mean_iou_per_photograph": "mean IoU of each photograph, averaged over photographs",
    "boundary_iou": "IoU in a narrow band along the outlines of each class",
}
"""What each score of score.json means."""

RULES = ("mean_iou_all_classes", "mean_iou_present_or_predicted")
"""Other ways to count absent classes; shown where they differ from the mean IoU."""

REFINED = "score_after_crf.json"
"""What make_report.py --crf leaves: scores on the split of score.json, after the CRF."""

EVALUATED = "evaluation.json"
"""What evaluate_voc.py leaves: scores by the names of what was scored."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
img { max-width: 100% }
table { border-collapse: collapse }
td, th { padding: 0.1em 0.8em; text-align: left; vertical-align: top }
td:first-child { white-space: nowrap }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
tr:nth-child(even) { background: #f2f2f2 }
.headline { font-size: 2em; margin: 0 } .headline small { font-size: 0.5em; color: #555 }
p.note, td.note { color: #555 } code { overflow-wrap: anywhere }
"""


def write(folder: Path) -> Path:
    """Writes report.html from the scores, pictures and options that lie in the folder."""
    scores, evaluated = _read(folder / "score.json"), _read(folder / EVALUATED)
    # Of the same split and options, where the network has the same score there.
    same = evaluated.get("network", {}).get("mean_iou") == scores.get("mean_iou")
    after = _read(folder / REFINED) or (evaluated.get("network + CRF", {}) if same else {})
    columns = {
        "network": scores,
        "averaged parameters": scores.get("ema", {}),
        "after the CRF": after,
    }
    columns = {name: values for name, values in columns.items() if values}
    record = _read(folder / "config.json")
    sections = [
        *_headline(columns),
        *_run_section(folder, record),
        *_score_section(columns),
        *_picture_sections(folder),
        *_class_section(columns),
        *_option_section(record.get("config", {})),
    ]
    title = escape(folder.resolve().name)
    path = folder / "report.html"
    path.write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body></html>\n",
        encoding="utf-8",
    )
    return path


def training_seconds(folder: Path, record: Mapping[str, Any]) -> float | None:
    """How long the updates of metrics.jsonl took, compiling included and scores left out; None
    where nothing was logged."""
    seconds, before = 0.0, 0
    for logged in workdir.read_metrics(folder):
        if logged.get("images_per_second"):
            photographs = (logged["step"] - before) * record["config"]["batch_size"]
            seconds += photographs / logged["images_per_second"]
            before = logged["step"]
    return seconds or None


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _headline(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    parts = [
        f"{value:.1%}" if name == "network" else f"<small>{name}</small> {value:.1%}"
        for name, scores in columns.items()
        if (value := scores.get("mean_iou")) is not None
    ]
    if parts:
        yield f'<p class="headline"><small>mean IoU</small> {", ".join(parts)}</p>'


def _run_section(folder: Path, record: Mapping[str, Any]) -> Iterator[str]:
    if not record:
        return
    seconds = training_seconds(folder, record)
    data = record.get("config", {}).get("data", {})
    sizes = record.get("split_sizes", {})
    started = record.get("started")
    rows = {
        "data": data.get("root") or "scenes drawn by deeplab_jax",
        "trained on": _split(data.get("train_split"), sizes),
        "scored on": _split(data.get("val_split"), sizes),
        "command": record.get("command"),
        "started": started and datetime.datetime.fromisoformat(started).strftime("%d %B %Y, %H:%M"),
        "training time": seconds
        and f"{datetime.timedelta(seconds=round(seconds))} (compiling included, scores left out)",
        "device": record.get("device"),
        "software": ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()),
    }
    yield "<table>"
    for name, value in rows.items():
        if value:
            text = escape(str(value))
            shown = f"<code>{text}</code>" if name == "command" else text
            yield f"<tr><td>{name}</td><td>{shown}</td></tr>"
    yield "</table>"


def _split(name: str | None, sizes: Mapping[str, int]) -> str | None:
    number = sizes.get(name or "")
    return name if number is None else f"{name}, {number:,} photographs"


def _score_section(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    scores = columns.get("network", {})
    names = [name for name, value in scores.items() if not isinstance(value, Mapping)]
    names = [n for n in names if n not in RULES or scores[n] != scores.get("mean_iou")]
    if not names:
        return
    yield "<h2>Scores</h2>\n<table>" + _head("", *columns, note="what it means")
    for name in names:
        numbers = "".join(_number(values.get(name)) for values in columns.values())
        meaning = f'<td class="note">{MEANINGS.get(name, "")}</td>'
        words = name.replace("_", " ").replace("iou", "IoU")
        yield f"<tr><td>{escape(words)}</td>{numbers}{meaning}</tr>"
    yield "</table>"


def _class_section(columns: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    names = columns.get("network", {}).get("iou", {})
    if not names:
        return
    kinds = {"iou": "IoU", "class_boundary_iou": "Boundary IoU"}
    shown = [(k, c) for k in kinds for c in columns if columns[c].get(k)]
    titles = [kinds[k] if c == "network" else f"{kinds[k]} {c}" for k, c in shown]
    yield "<h2>Scores of each class</h2>"
    yield '<p class="note">- where a class occurs neither in the truth nor in the prediction.</p>'
    yield "<table>" + _head("class", *titles)
    for name in names:
        numbers = "".join(_number(columns[c][k].get(name)) for k, c in shown)
        yield f"<tr><td>{escape(name)}</td>{numbers}</tr>"
    yield "</table>"


def _head(first: str, *titles: str, note: str = "") -> str:
    cells = "".join(f'<th class="number">{escape(title)}</th>' for title in titles)
    return f"<tr><th>{first}</th>{cells}" + (f"<th>{note}</th></tr>" if note else "</tr>")


def _number(value: Any) -> str:
    shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return f'<td class="number">{escape(shown)}</td>'


def _picture_sections(folder: Path) -> Iterator[str]:
    for name, (title, note) in PICTURES.items():
        path = folder / name
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            yield f"<h2>{title}</h2>"
            if note:
                yield f'<p class="note">{note}</p>'
            yield f'<img alt="{title}" src="data:image/png;base64,{data}">'


def _option_section(config: dict[str, Any]) -> Iterator[str]:
    if not config:
        return
    yield "<h2>Options</h2>\n<details><summary>all options of the run</summary>\n<table>"
    for name, value in flatten_dict(config, sep=".").items():
        yield f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
    yield "</table></details>"
