"""Published weights by name: a copy of each on this machine, checked before it counts as there.

A name stands wherever a weight file is taken; an existing folder or file called so wins. Networks
in BUNDLED come with the package. Others are downloaded once into a cache folder,
DEEPLAB_JAX_WEIGHTS or else deeplab_jax/weights in the user's cache.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deeplab_jax import storage
from deeplab_jax.data import downloads
from deeplab_jax.types import UserError
from deeplab_jax.weights import archives, files, sources
from deeplab_jax.weights.published import BY_HAND, LICENCES, NAMES, Published

BUNDLED = Path(__file__).parent / "bundled"
"""Holds NAME.safetensors, with bfloat16 numbers, and NAME.md, its card."""

CACHE_VARIABLE = "DEEPLAB_JAX_WEIGHTS"


def resolve(source: Path | str) -> Path:
    """The path itself where something is there, or the file of a name, downloaded and checked.

    Raises:
      UserError: the name's file cannot be downloaded, or there is no such file, folder or name.
    """
    path, name = Path(source), str(source)
    if path.exists() or archives.member_of(path):
        return path
    if name in bundled():
        return BUNDLED / f"{name}.safetensors"
    if name in NAMES:
        return fetch(name)
    if name in BY_HAND:
        raise UserError(f"{name} cannot be downloaded by name: it {BY_HAND[name]}")
    if path.name == name and not path.suffix:
        raise UserError(
            f"{name} is no file or folder here, and no name of published weights; these are "
            f"{', '.join((*bundled(), *NAMES, *BY_HAND))}"
        )
    raise UserError(
        f"there is no file or folder {path}; give the work folder of a run, a weight file, or a "
        f"name of published weights such as {next(iter(NAMES))}"
    )


def bundled() -> list[str]:
    """Names of the networks that come with the package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def of_file(path: Path) -> Published | None:
    """What is known of a file that is called as its publisher calls it."""
    return next((named for named in NAMES.values() if named.file == path.name), None)


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "deeplab_jax" / "weights"


def fetch(name: str) -> Path:
    """The checked file of a name, downloaded where it is not there yet.

    Of several processes at once the first downloads and the others wait for it.

    Raises:
      UserError: it cannot be downloaded, or what came is another file.
    """
    named, folder = NAMES[name], cache_folder()
    path = folder / named.file
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        with storage.hold(lock, note=f"another process is downloading {path}; waiting for it"):
            if path.exists():
                check_bytes(path, named, f"remove {path} and type the same command again")
                print(f"{name} is {path}")
                return path
            print(f"{name} is downloaded to {path} (set {CACHE_VARIABLE} for another folder)")
            return downloads.receive(
                path, (named.address,), named.size, lambda part: check(part, named)
            )


def check(path: Path, named: Published) -> None:
    """Refuses a file of another size, SHA-256 or structure than the name's.

    Raises:
      UserError
    """
    check_bytes(path, named, "the server gave another file; try again later")
    check_structure(named, sources.read(path)[1])


def check_structure(named: Published, header: Mapping[str, Any]) -> None:
    """Refuses a file, by its header, that holds another network than the name's.

    Raises:
      UserError
    """
    model = header["model"]
    found = (model["backbone"], tuple(model["stage_sizes"]), len(header["class_names"]))
    wanted = (named.backbone, named.stage_sizes, len(named.class_names))
    if found != wanted:
        raise UserError(
            f"{header['source']['file']} holds a network with trunk, blocks and classes {found}, "
            f"and {named.file} has {wanted}; get it again from {named.address}"
        )


def check_bytes(path: Path, named: Published, remedy: str) -> None:
    """Refuses a file of another size or SHA-256, as far as these are known.

    Raises:
      UserError
    """
    size = path.stat().st_size
    if named.size not in (None, size):
        raise UserError(f"{path} has {size} bytes and must have {named.size}; {remedy}")
    if named.sha256 and not (digest := sources.sha256(path)).startswith(named.sha256):
        raise UserError(
            f"{path} has the SHA-256 {digest} and must have {named.sha256}...; {remedy}"
        )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """An error of the file system as a sentence.

    Raises:
      UserError
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"weights cannot be kept in {folder} ({error.strerror}); make room there, or set "
            f"{CACHE_VARIABLE} to another folder"
        ) from None


def listing() -> str:
    """A table of the names for people, one a line."""
    heads = ("name", "trained on", "classes", "mean IoU on val", "size", "licence of the weights")
    rows: list[tuple[str, ...]] = [heads]
    for name in bundled():
        path = BUNDLED / f"{name}.safetensors"
        header = files.read(path)[1]
        card = header.get("card", {})
        size = f"{path.stat().st_size / 1e6:.1f} MB"
        number = str(len(header["class_names"]))
        rows.append((name, card["data"], number, card["score"], size, card["licence"]))
    for name, named in NAMES.items():
        score = f"{named.val_mean_iou} %" if named.val_mean_iou else "-"
        classes, size = str(len(named.class_names) or "a start"), f"{named.megabytes} MB"
        rows.append((name, named.trained_on, classes, score, size, LICENCES[named.folder]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines += [f"{name}: {how}" for name, how in BY_HAND.items()]
    lines += [
        f"Files are kept in {cache_folder()} ({CACHE_VARIABLE} names another folder).",
        "Mean IoU is the publisher's, without CRF. Whether you may use weights, check yourself.",
    ]
    return "\n".join(lines)
