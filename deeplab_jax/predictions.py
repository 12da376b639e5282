"""The folder that predictions are written to: inputs are never overwritten, commands can resume.

predictions.json    what was run, with which options, on which photographs
NAME.png            class ids as a palette PNG
NAME_overlay.jpg    the photograph with its classes laid over it
NAME_probs.npy      probabilities, float32 `[h, w, classes]`, on request

For a test server there are masks alone, under its names, and an archive of them; see `submission`.

Every file is written under a hidden name and renamed when it is whole, so that a photograph is done
when all its files exist.
"""

import contextlib
import json
import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab_jax import storage
from deeplab_jax.choices import Server
from deeplab_jax.types import UserError

RECORD = "predictions.json"


@dataclass(frozen=True)
class Paths:
    """Where the results of one photograph are written."""

    labels: Path
    overlay: Path | None
    probs: Path | None

    def __iter__(self) -> Iterator[Path]:
        return (path for path in (self.labels, self.overlay, self.probs) if path is not None)


def paths_of(folder: Path, photograph: Path, *, probs: bool) -> Paths:
    """Where the results of a photograph lie in a folder of predictions."""
    stem = folder / photograph.stem
    return Paths(
        Path(f"{stem}.png"),
        Path(f"{stem}_overlay.jpg"),
        Path(f"{stem}_probs.npy") if probs else None,
    )


def submission(
    server: Server, folder: Path, names: Sequence[str], *, split: str, competition: int = 6
) -> list[Paths]:
    """Where the masks for a test server are written, by the names of the photographs.

    PASCAL VOC: `results/VOC2012/Segmentation/comp6_test_cls/<id>.png`; competition 5 is for methods
    trained on VOC's data alone, without ImageNet. Cityscapes: `<split>/<name>.png`.
    """
    if server == "voc":
        parent = Path("results/VOC2012/Segmentation") / f"comp{competition}_{split}_cls"
        return [Paths(folder / parent / f"{name}.png", None, None) for name in names]
    return [Paths(folder / split / f"{name}_leftImg8bit.png", None, None) for name in names]


def pack(server: Server, folder: Path, outputs: Sequence[Paths]) -> Path:
    """The archive that the server takes, with every mask once and in the order given."""
    masks = [paths.labels for paths in outputs]
    if server == "voc":
        archive = folder / "results.tar"
        with written_whole(archive) as partial, tarfile.open(partial, "w") as file:
            for mask in masks:
                file.add(mask, mask.relative_to(folder).as_posix())
        return archive
    archive = folder / "results.zip"
    with written_whole(archive) as partial, zipfile.ZipFile(partial, "w") as file:
        for mask in masks:
            file.write(mask, mask.name)
    return archive


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Compares the files themselves, so that no link and no spelling leads to an input.

    Raises:
      UserError: one of the outputs is one of the inputs.
    """
    known = {key: path for path in inputs for key in _identities(path)}
    for output in outputs:
        for key in _identities(output):
            if key in known:
                raise UserError(
                    f"the result {output} would overwrite {known[key]}; choose another --output"
                )


def refuse_folder_of_photographs(folder: Path, given: Iterable[Path]) -> None:
    """Refuses to write where a folder of photographs was given.

    The results would be taken for photographs the next time.

    Raises:
      UserError: the folder is one of those given.
    """
    here = set(_identities(folder))
    for path in given:
        if path.is_dir() and here & set(_identities(path)):
            raise UserError(
                f"{folder} is the folder of the photographs, where results would be taken for "
                "photographs; choose another --output"
            )


def _identities(path: Path) -> Iterator[Any]:
    """The path without links, and the number of the file where it exists."""
    yield os.path.realpath(path)
    with contextlib.suppress(OSError):
        status = path.stat()
        yield status.st_dev, status.st_ino


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process.

    Raises:
      UserError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from None
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


def begin(
    folder: Path,
    settings: Mapping[str, Any],
    photographs: Sequence[Path],
    outputs: Sequence[Paths],
    *,
    overwrite: bool,
) -> list[int]:
    """Numbers of the photographs that are still to be predicted; leaves the record of them all.

    `settings` are JSON values that the results depend on. What earlier commands with the same
    settings left of other photographs stays. With `overwrite` all that they left is removed first.

    Raises:
      UserError: the folder holds results with other settings, of another photograph of the same
        name, of photographs that have changed since, or files that no command recorded.
    """
    settings = json.loads(json.dumps(settings, default=str))
    before = _read_record(folder)
    if overwrite:
        (folder / RECORD).unlink(missing_ok=True)  # first, so that nothing half removed is whole
        left = [file for files in before["written"].values() for file in files]
        for path in (*(folder / file for file in left), *(p for paths in outputs for p in paths)):
            path.unlink(missing_ok=True)
        before = EMPTY
    for name in {**before["settings"], **settings} if before is not EMPTY else ():
        was, wanted = before["settings"].get(name), settings.get(name)
        if was != wanted:
            raise UserError(
                f"{folder} holds predictions with {name} {was}, and {wanted} was asked for; "
                f"{ADVICE}"
            )
    done = {i for i, paths in enumerate(outputs) if all(path.exists() for path in paths)}
    record = {"settings": settings, "photographs": dict(before["photographs"])}
    record["written"] = dict(before["written"])
    owners = {file: photo for photo, files in record["written"].items() for file in files}
    for i, (photograph, paths) in enumerate(zip(photographs, outputs, strict=True)):
        name, files = os.path.realpath(photograph), [_inside(folder, path) for path in paths]
        for path, file in zip(paths, files, strict=True):
            if owners.get(file, name) != name:
                raise UserError(f"{path} is the result of {owners[file]}; choose another --output")
            if file not in owners and (path.exists() or path.is_symlink()):
                raise UserError(
                    f"{path} exists, and no {RECORD} beside it says that this command wrote it; "
                    f"{ADVICE}"
                )
        stamp = _stamp(photograph)
        if i in done and record["photographs"].get(name) != stamp:
            raise UserError(f"{photograph} has changed since {folder} was written; {ADVICE}")
        record["photographs"][name], record["written"][name] = stamp, files
    with written_whole(folder / RECORD) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    return [i for i in range(len(photographs)) if i not in done]


def _inside(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _stamp(path: Path) -> list[int] | None:
    """Size in bytes and time in ns; None for a file that is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


EMPTY: dict[str, dict] = {"settings": {}, "photographs": {}, "written": {}}
"""The record of a folder that no command has written to."""


def _read_record(folder: Path) -> dict[str, dict]:
    try:
        record = json.loads((folder / RECORD).read_text())
        return {name: dict(record[name]) for name in EMPTY}
    except (OSError, ValueError, KeyError, TypeError):
        return EMPTY


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A hidden name to write to, with the suffix of `path`, which it is renamed to at the end.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with storage.written_whole(path) as partial:
            yield partial
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); mend that, and the same command goes on"
        ) from None
