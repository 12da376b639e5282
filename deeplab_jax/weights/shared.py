"""A network as others get it: a folder with weights and a card, or a file in the package.

`write` and `read` do the folder, which a hub shows as it is; `bundle` makes the file that a name
stands for wherever weights are taken (names.BUNDLED).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes

from deeplab_jax.types import UserError
from deeplab_jax.weights import files, names
from deeplab_jax.weights.files import Flat

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
    """Writes WEIGHTS, CONFIG and CARD into a folder, which is made if it is missing.

    Raises:
      UserError: the folder holds other things, or cannot be written.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if strangers := {n for n in there if not n.startswith(".")} - {WEIGHTS, CONFIG, CARD}:
        raise UserError(f"{folder} holds {min(strangers)}; give a new or an empty folder")
    header = _without_paths(header) | {"card": asdict(card)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from None
    files.write(folder / WEIGHTS, {"": flat}, header)
    config = {"library_name": "deeplab_jax", **header}
    for name, text in ((CONFIG, json.dumps(config, indent=2) + "\n"), (CARD, page(header, card))):
        with files.written_whole(folder / name) as partial:
            partial.write_text(text)


def is_shared(folder: Path) -> bool:
    """Whether `write` made a folder."""
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(folder: Path) -> tuple[Flat, dict[str, Any]]:
    """Arrays by name and the header, as config.json has it.

    Raises:
      UserError: a file is missing or damaged, or config.json describes another network.
    """
    flat, of_weights = files.read(folder / WEIGHTS)
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


def bundle(name: str, flat: Flat, header: Mapping[str, Any], card: Card) -> Path:
    """Writes names.BUNDLED / NAME.safetensors, its numbers in bfloat16, and NAME.md.

    Raises:
      UserError: the name is none, or the files cannot be written.
    """
    if not name.isidentifier() or name in (*names.NAMES, *names.BY_HAND):
        raise UserError(f"{name!r} cannot be the name of a network: give letters and digits alone")
    names.BUNDLED.mkdir(exist_ok=True)
    path = names.BUNDLED / f"{name}.safetensors"
    header = _without_paths(header) | {"card": asdict(card)}
    files.write(path, {"": flat}, header, dtype=ml_dtypes.bfloat16)
    with files.written_whole(path.with_suffix(".md")) as partial:
        partial.write_text(page(header, card))
    return path


def _without_paths(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header without the folders of this machine."""
    source = dict(header.get("source") or {})
    if "file" in source:
        source["file"] = Path(source["file"]).name
    return json.loads(json.dumps({**header, "source": source}))


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


def page(header: Mapping[str, Any], card: Card) -> str:
    """The model card: what a hub reads in its first lines, and what people read below."""
    model = header["model"]
    told = {name.capitalize(): text for name, text in asdict(card).items()} | {
        "Network": f"{model['backbone']}, blocks {model['stage_sizes']}, width {model['width']}",
        "Classes": ", ".join(header["class_names"]),
        "Inputs": f"0..255 less {model['mean_bgr']}, {header['channel_order']}",
    }
    cells = [(name, " ".join(text.split()).replace("|", "\\|")) for name, text in told.items()]
    return PAGE.format(rows="\n".join(f"| {name} | {text} |" for name, text in cells))
