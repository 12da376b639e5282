"""The folder that predictions are written to: inputs are never overwritten, commands can resume.

predictions.json    what was run, with which options, on which photographs
NAME.png            class ids as a palette PNG
NAME_overlay.jpg    the photograph with its classes laid over it
NAME_probs.npy      probabilities, float32 `[h, w, classes]`, on request (or .png, .tif)
NAME_entropy.npy    how unsure the network is of each pixel, float32 `[h, w]`, likewise
NAME.tif            class ids of a georeferenced photograph, with its coordinate system

For a test server there are masks alone, under its names, and an archive of them; see `submission`.

Every file is written under a hidden name and renamed when it is whole, so that a photograph is done
when all its files exist.
"""

import contextlib
import importlib.util
import json
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from PIL import Image as PILImage
from scipy.special import entr

from deeplab_jax import storage
from deeplab_jax.choices import Server
from deeplab_jax.types import UserError

RECORD = "predictions.json"

MapFormat = Literal["npy", "png", "tif"]


@dataclass(frozen=True)
class Paths:
    """Where the results of one photograph are written."""

    labels: Path
    overlay: Path | None = None
    probs: Path | None = None
    entropy: Path | None = None
    georeferenced: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        return (path for path in vars(self).values() if path is not None)


def paths_of(
    folder: Path,
    photograph: Path,
    *,
    maps: Mapping[str, MapFormat] = {},
    georeferenced: bool = False,
) -> Paths:
    """Where the results of a photograph lie in a folder of predictions."""
    if "tif" in maps.values() and importlib.util.find_spec("tifffile") is None:
        raise UserError("TIFFs of probabilities need pip install 'deeplab_jax[tiff]'")
    stem = folder / photograph.stem
    paths = Paths(
        Path(f"{stem}.png"),
        Path(f"{stem}_overlay.jpg"),
        **{kind: Path(f"{stem}_{kind}.{suffix}") for kind, suffix in maps.items()},
        georeferenced=Path(f"{stem}.tif") if georeferenced else None,
    )
    if any(len(os.fsencode(f".partial-{path.name}")) > 255 for path in paths):
        raise UserError(f"the name of {photograph} is too long for results beside it; shorten it")
    return paths


def submission(
    server: Server, folder: Path, names: Sequence[str], *, split: str, competition: int = 6
) -> list[Paths]:
    """Where the masks for a test server are written, by the names of the photographs.

    PASCAL VOC: `results/VOC2012/Segmentation/comp6_test_cls/<id>.png`; competition 5 is for methods
    trained on VOC's data alone, without ImageNet. Cityscapes: `<split>/<name>.png`.
    """
    parent, end = folder / split, "_leftImg8bit.png"
    if server == "voc":
        parent, end = folder / f"results/VOC2012/Segmentation/comp{competition}_{split}_cls", ".png"
    return [Paths(parent / f"{name}{end}") for name in names]


def pack(server: Server, folder: Path, outputs: Sequence[Paths]) -> Path:
    """The archive that the server takes, with every mask once and in the order given."""
    masks = [paths.labels for paths in outputs]
    archive = folder / ("results.tar" if server == "voc" else "results.zip")
    with storage.written_whole(archive) as partial:
        if server == "voc":
            with tarfile.open(partial, "w") as file:
                for mask in masks:
                    file.add(mask, mask.relative_to(folder).as_posix())
        else:
            with zipfile.ZipFile(partial, "w") as file:
                for mask in masks:
                    file.write(mask, mask.name)
    return archive


def entropy(probs: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w"]:
    """How unsure a network is: entropy over its largest value, 0 for a sure class, 1 for none.

    >>> entropy(np.array([[[1.0, 0.0], [0.5, 0.5]]])).tolist()
    [[0.0, 1.0]]
    """
    return (entr(probs).sum(-1) / np.log(max(probs.shape[-1], 2))).astype(np.float32)


DOUBLE, TAG_TYPES = 12, {34735: 3, 34737: 2}
"""Types of the tags of a GeoTIFF: whole numbers, text and, of all others, doubles."""


def write_map(
    path: Path, values: Float[np.ndarray, "h w *c"], geo_tags: Mapping[int, Any] = {}
) -> None:
    """Values from 0 to 1 in the format of the suffix: .npy as they are, .png in 16 bits with the
    channels below each other, .tif as float32 bands with the tags of a GeoTIFF."""
    bands = np.moveaxis(values, -1, 0) if values.ndim == 3 else values
    with storage.written_whole(path) as partial:
        if path.suffix == ".npy":
            np.save(partial, values)
        elif path.suffix == ".png":
            deep = np.rint(65535 * bands).astype(np.uint16).reshape(-1, values.shape[1])
            PILImage.fromarray(deep).save(partial)
        else:
            import tifffile  # of the extra tiff

            known = {n: v if isinstance(v, tuple | str) else (v,) for n, v in geo_tags.items()}
            tags = [(n, TAG_TYPES.get(n, DOUBLE), len(v), v, True) for n, v in known.items()]
            separate = "separate" if bands.ndim == 3 else None
            tifffile.imwrite(
                *(partial, bands), photometric="minisblack", planarconfig=separate, extratags=tags
            )


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuses outputs that are inputs, comparing the files themselves, so that no link and no
    spelling leads to one."""
    known = {key: path for path in inputs for key in _identities(path)}
    for output in outputs:
        for key in _identities(output):
            if key in known:
                raise UserError(
                    f"the results would overwrite {known[key]}; choose another --output"
                )


def _identities(path: Path) -> Iterator[Any]:
    """The path without links, and the number of the file where it exists."""
    yield os.path.realpath(path)
    with contextlib.suppress(OSError):
        status = path.stat()
        yield status.st_dev, status.st_ino


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process, which no other may do."""
    with storage.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not storage.try_lock(descriptor):
            raise UserError(
                f"another process is writing predictions to {folder}; wait for it, or choose "
                "another --output"
            )
        yield
    finally:
        os.close(descriptor)


ADVICE = "choose another --output, or give --overwrite to predict anew"


def find_unfinished(
    folder: Path,
    asked: Mapping[str, Any],
    photographs: Sequence[Path],
    outputs: Sequence[Paths],
    *,
    overwrite: bool,
) -> list[int]:
    """Numbers of the photographs that are still to be predicted; leaves the record of them all.

    The results depend on what is `asked`, JSON values. What earlier commands with the same
    settings left of other photographs stays. With `overwrite` all that they left is removed first.
    Without it, results with other settings, of another photograph of the same name, of photographs
    that have changed since, and files that no command recorded are a UserError.
    """
    settings = json.loads(json.dumps(asked, default=str))
    record = _read_record(folder)
    if overwrite:
        (folder / RECORD).unlink(missing_ok=True)  # first, so that nothing half removed is whole
        written = [folder / file for files in record["written"].values() for file in files]
        for path in (*written, *(path for paths in outputs for path in paths)):
            path.unlink(missing_ok=True)
        record = _read_record(folder)
    before = record["settings"] or settings
    for name in {**before, **settings}:
        was, wanted = before.get(name), settings.get(name)
        if was != wanted:
            raise UserError(
                f"{folder} holds predictions with {name} {was}, and {wanted} was asked for; "
                f"{ADVICE}"
            )
    record["settings"] = settings
    left = []
    owners = {file: photo for photo, files in record["written"].items() for file in files}
    for i, (photograph, paths) in enumerate(zip(photographs, outputs, strict=True)):
        name = os.path.realpath(photograph)
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        for file, path in files.items():
            if owners.get(file, name) != name:
                raise UserError(f"{path} is the result of {owners[file]}; choose another --output")
            if file not in owners and (path.exists() or path.is_symlink()):
                raise UserError(
                    f"{path} exists, and no {RECORD} beside it says that this command wrote it; "
                    f"{ADVICE}"
                )
        stamp = None
        with contextlib.suppress(OSError):  # a missing one is told of when it is read
            status = photograph.stat()
            stamp = [status.st_size, status.st_mtime_ns]
        if not all(path.exists() for path in paths):
            left.append(i)
        elif record["photographs"].get(name) != stamp:
            raise UserError(f"{photograph} has changed since {folder} was written; {ADVICE}")
        record["photographs"][name], record["written"][name] = stamp, list(files)
    with storage.written_whole(folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    return left


def _read_record(folder: Path) -> dict[str, dict]:
    """What predictions.json holds; nothing where no command has written it, or not all of it."""
    names = ("settings", "photographs", "written")
    try:
        record = json.loads((folder / RECORD).read_text())
        return {name: dict(record[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return {name: {} for name in names}
