"""A network as others get it: a folder with weights, config.json and a card, as hubs show it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.types import UserError
from deeplab_jax.weights import files, sources
from deeplab_jax.weights.files import Flat, Header

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


@dataclass(frozen=True)
class Card:
    """What others want to know of a network; a field says "not stated" where nobody filled it."""

    data: str = "not stated"
    """The data set it was trained on, and that set's licence."""
    split: str = "not stated"
    """The split that the score is of, and how many photographs it has."""
    score: str = "not stated"
    """Such as "mean IoU 55.1 %, with the CRF 57.9 %"."""
    command: str = "not stated"
    """What was typed to train it."""
    licence: str = "not stated"
    """Of the weights."""


def write(folder: Path, flat: Flat, header: Mapping[str, Any], card: Card) -> None:
    """Writes WEIGHTS, CONFIG and CARD into a folder, which is made if it is missing. A UserError
    where it holds other things, or cannot be written."""
    there = {path.name for path in folder.glob("[!.]*")}
    if strangers := there - {WEIGHTS, CONFIG, CARD}:
        raise UserError(f"{folder} holds {min(strangers)}; give a new or an empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    told = write_with_card(folder / WEIGHTS, folder / CARD, flat, header, card)
    with files.written_whole(folder / CONFIG) as partial:
        partial.write_text(json.dumps({"library_name": "deeplab_jax", **told}, indent=2) + "\n")


def write_with_card(
    path: Path,
    page: Path,
    flat: Flat,
    header: Mapping[str, Any],
    card: Card,
    dtype: np.typing.DTypeLike = np.float32,
) -> Header:
    """Writes weights and card; gives the header, without folders of this machine."""
    source = dict(header.get("source") or {})
    if "file" in source:
        source["file"] = Path(source["file"]).name
    told = json.loads(json.dumps({**header, "source": source, "card": asdict(card)}))
    files.write(path, {"": flat}, told, dtype=dtype)
    with files.written_whole(page) as partial:
        partial.write_text(PAGE.format(rows=_rows(told)))
    return told


def is_shared(folder: Path) -> bool:
    """Whether `write` made a folder."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(folder: Path) -> tuple[Flat, Header]:
    """Arrays by name and the header, as config.json has it. A UserError where a file is missing or
    damaged, or config.json describes another network."""
    flat, of_weights = sources.read(folder / WEIGHTS)
    try:
        header = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}") from None
    told = header if isinstance(header, dict) else {}
    classes, expected = told.get("class_names"), of_weights["class_names"]
    same_number = isinstance(classes, list) and len(classes) == len(expected)
    if not same_number or told.get("model") != of_weights["model"]:
        raise UserError(
            f"{folder / CONFIG} describes another network than {WEIGHTS} beside it; get both again"
        )
    return flat, told


PAGE = """---
library_name: deeplab_jax
pipeline_tag: image-segmentation
license: other
---

# DeepLab v2

| | |
|---|---|
{rows}

```python
import deeplab_jax

segmenter = deeplab_jax.load("PATH OF THIS FOLDER")
probs = segmenter.predict(image)  # RGB uint8 [h, w, 3]
```
"""
"""The card: what a hub reads in its first lines, and what people read below."""


def _rows(header: Header) -> str:
    model = header["model"]
    told = {name.capitalize(): text for name, text in header["card"].items()} | {
        "Network": f"{model['backbone']}, blocks {model['stage_sizes']}, width {model['width']}",
        "Classes": ", ".join(header["class_names"]),
        "Inputs": f"0..255 less {model['mean_bgr']}, {header['channel_order']}",
    }
    cells = [(name, " ".join(text.split()).replace("|", "\\|")) for name, text in told.items()]
    return "\n".join(f"| {name} | {text} |" for name, text in cells)
