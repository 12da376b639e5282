"""report.html: one page that shows what a work folder holds and needs nothing but a browser.

Pictures are embedded, so the page can be sent as it is. Names come from users' data and are
escaped.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

PICTURES = {
    "curves.png": "Learning curves",
    "classes.png": "IoU of each class",
    "confusion.png": "Confusion matrix: where the pixels of each class went",
    "sheet.png": "Photographs of the val split, evenly spread over it",
    "failures.png": "The photographs with the lowest mean IoU",
    "crf.png": "Before and after the CRF, where it changes most",
    "trimap.png": "Mean IoU near boundaries",
    "field_of_view.png": "Where a score looks",
}
"""Files of a work folder in the order they are shown."""

REFINED = "score_after_crf.json"
"""What make_report.py --crf leaves: scores on the split of score.json, after the CRF."""

EVALUATED = "evaluation.json"
"""What evaluate_voc.py leaves: scores by the names of what was scored."""

MASKS = "train_masks.json"
"""What training on given masks (--data.train-masks) leaves: how good they are."""

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }
img { max-width: 100% }
table { border-collapse: collapse } td, th { padding: 0.1em 0.8em; text-align: left }
td.number { text-align: right; font-variant-numeric: tabular-nums }
tr:nth-child(even) { background: #f2f2f2 }
"""


def write(folder: Path) -> Path:
    """Writes report.html from the scores, pictures and options that lie in the folder."""
    scores = _read(folder / "score.json")
    refined = _refined(folder, scores)
    record = _read(folder / "config.json")
    sections = [
        *_score_section(scores, refined),
        *_mask_section(_read(folder / MASKS), scores, refined),
        *_picture_sections(folder),
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


def _refined(folder: Path, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores after the CRF: those of make_report.py, else of evaluate_voc.py where the network's
    score there is that of `scores`, so that split and options are the same."""
    evaluated = _read(folder / EVALUATED)
    same = evaluated.get("network", {}).get("mean_iou") == scores.get("mean_iou")
    return _read(folder / REFINED) or (evaluated.get("network + CRF", {}) if same else {})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _score_section(scores: Mapping[str, Any], refined: Mapping[str, Any]) -> Iterator[str]:
    if not scores:
        return
    yield "<h2>Score</h2>"
    columns = [scores, *([refined] if refined else [])]
    head = ["", "network", *(["after CRF"] if refined else [])]
    names = [name for name, value in scores.items() if not isinstance(value, Mapping)]
    rows = [(name.replace("_", " ").replace("iou", "IoU"), name, None) for name in names]
    for kind, title in (("iou", "IoU"), ("class_boundary_iou", "Boundary IoU")):
        rows += [(f"{title} of {name}", kind, name) for name in scores.get(kind, {})]
    yield "<table><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"
    for shown, key, name in rows:
        values = [c.get(key) if name is None else c.get(key, {}).get(name) for c in columns]
        cells = ["-" if v is None else f"{v:.4f}" for v in values]
        numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
        yield f"<tr><td>{escape(shown)}</td>{numbers}</tr>"
    yield "</table>"


def _mask_section(
    quality: Mapping[str, Any], scores: Mapping[str, Any], refined: Mapping[str, Any]
) -> Iterator[str]:
    if not quality:
        return
    yield "<h2>Masks of the training split</h2>"
    compared = {
        "of the masks": quality,
        "of the network trained on them": scores,
        "of the network after the CRF": refined,
    }
    rows = [
        f"<tr><td>mean IoU {name}</td>{_number(values['mean_iou'])}</tr>"
        for name, values in compared.items()
        if "mean_iou" in values
    ]
    yield "<table>" + "".join(rows) + "</table>\n<table>"
    rows = [(name.replace("_", " ").replace("iou", "IoU"), name) for name in quality]
    values = {**quality, "absent": ", ".join(quality["absent"]) or "none"}
    for shown, name in rows:
        if name != "iou":
            yield f"<tr><td>{escape(shown)}</td>{_number(values[name])}</tr>"
    for name, value in quality["iou"].items():
        yield f"<tr><td>IoU of {escape(name)}</td>{_number(value)}</tr>"
    yield "</table>"


def _number(value: Any) -> str:
    shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return f'<td class="number">{escape(shown)}</td>'


def _picture_sections(folder: Path) -> Iterator[str]:
    for name, title in PICTURES.items():
        path = folder / name
        if path.exists():
            data = base64.b64encode(path.read_bytes()).decode()
            yield f'<h2>{title}</h2>\n<img alt="{title}" src="data:image/png;base64,{data}">'


def _option_section(config: Mapping[str, Any]) -> Iterator[str]:
    if not config:
        return
    yield "<h2>Options</h2>\n<table>"
    for name, value in _flat(config):
        yield f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>"
    yield "</table>"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
