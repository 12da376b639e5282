"""Weights by name: networks that come with the package, and published files, downloaded once.

A name stands wherever a weight file is taken; an existing folder or file called so wins. Downloads
are kept in a cache folder, DEEPLAB_JAX_WEIGHTS or else deeplab_jax/weights in the user's cache, and
checked before they count as there.
"""

import os
from pathlib import Path

import ml_dtypes

from deeplab_jax import storage
from deeplab_jax.data import downloads
from deeplab_jax.types import UserError
from deeplab_jax.weights import formats, shared, sources
from deeplab_jax.weights.files import Flat, Header
from deeplab_jax.weights.published import BY_HAND, LICENCES, NAMES, Published

BUNDLED = Path(__file__).parent / "bundled"
"""Holds STEM.safetensors, with bfloat16 numbers, and STEM.md, its card."""
STEMS = {"camvid": "camvid_small"}
"""Names of bundled networks that are not those of their files."""

CACHE_VARIABLE = "DEEPLAB_JAX_WEIGHTS"


def read(source: Path, *, answers: sources.Answers = sources.NO_ANSWERS) -> tuple[Flat, Header]:
    """Arrays by our names and the header, of a name, a file, or a folder that `shared.write` made.
    A UserError where there is nothing of the kind, and as in sources.read."""
    path = resolve(source)
    if path.is_dir():
        if not shared.is_shared(path):
            formats.refuse_folder(path)
        return shared.read(path)
    flat, header = sources.read(path, answers=answers)
    named = {named.file: named for named in NAMES.values()}.get(path.name)
    if named and path.parent == cache_folder():  # where it may have been put by hand
        _check_network(named, header)
    return flat, header


def resolve(source: Path | str) -> Path:
    """The path itself where something is there, or the file of a name, downloaded and checked. A
    UserError where that cannot be downloaded, or there is no such file, folder or name."""
    path, name, own = Path(source), str(source), bundled()
    if name in (*own, *NAMES) and not is_network(path):
        return own.get(name) or fetch(name)
    if path.exists() or formats.member_of(path):
        return path
    if name in BY_HAND:
        raise UserError(f"{name} cannot be downloaded by name: it {BY_HAND[name]}")
    raise UserError(
        f"there is no file or folder {path}; give the work folder of a run, a weight file, or a "
        f"name of published weights: {', '.join((*own, *NAMES, *BY_HAND))}"
    )


def is_network(path: Path) -> bool:
    """Whether `path` is a file, or a network's folder; that of a data set is neither."""
    return path.is_file() or (path / shared.CONFIG).is_file()


def bundled() -> dict[str, Path]:
    """The networks that come with the package: name -> file."""
    names = {stem: name for name, stem in STEMS.items()}
    paths = sorted(BUNDLED.glob("*.safetensors"))
    return {names.get(path.stem, path.stem): path for path in paths}


def bundle(name: str, flat: Flat, header: Header, card: shared.Card) -> Path:
    """Makes a network one of BUNDLED, with its card. A UserError where the name is none, or the
    files cannot be written."""
    if not name.isidentifier() or name in (*NAMES, *BY_HAND):
        raise UserError(f"{name!r} cannot be the name of a network: give letters and digits alone")
    BUNDLED.mkdir(exist_ok=True)
    path = BUNDLED / f"{STEMS.get(name, name)}.safetensors"
    shared.write_with_card(path, path.with_suffix(".md"), flat, header, card, ml_dtypes.bfloat16)
    return path


def cache_folder() -> Path:
    """Where downloaded weights are kept."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "deeplab_jax" / "weights"


def fetch(name: str) -> Path:
    """The checked file of a name, downloaded where it is not there yet.

    Of several processes at once the first downloads and the others wait for it. A UserError where
    it cannot be downloaded, or what came is another file.
    """
    named, folder = NAMES[name], cache_folder()
    path = folder / named.file

    def check(part: Path) -> None:
        _check_bytes(part, named, "the server gave another file; try again later")
        _check_network(named, sources.read(part)[1])

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        with storage.hold(lock, note=f"another process is downloading {path}; waiting for it"):
            if path.exists():
                _check_bytes(path, named, f"remove {path} and type the same command again")
                print(f"{name} is {path}")
                return path
            print(f"{name} is downloaded to {path} (set {CACHE_VARIABLE} for another folder)")
            return downloads.receive(path, (named.address,), named.size, check)
    except OSError as error:
        raise UserError(
            f"weights cannot be kept in {folder} ({error.strerror}); make room there, or set "
            f"{CACHE_VARIABLE} to another folder"
        ) from None


def _check_bytes(path: Path, named: Published, remedy: str) -> None:
    """Refuses a file of another size or SHA-256, as far as these are known."""
    size = path.stat().st_size
    if named.size not in (None, size):
        raise UserError(f"{path} has {size} bytes and must have {named.size}; {remedy}")
    if named.sha256 and not (digest := formats.sha256(path)).startswith(named.sha256):
        raise UserError(
            f"{path} has the SHA-256 {digest} and must have {named.sha256}...; {remedy}"
        )


def _check_network(named: Published, header: Header) -> None:
    model = header["model"]
    found = (model["backbone"], tuple(model["stage_sizes"]), len(header["class_names"]))
    wanted = (named.backbone, named.stage_sizes, len(named.class_names))
    if found != wanted:
        raise UserError(
            f"{header['source']['file']} holds a network with trunk, blocks and classes {found}, "
            f"and {named.file} has {wanted}; get it again from {named.address}"
        )


def listing() -> str:
    """A table of the names for people, one a line."""
    rows = [("name", "trained on", "classes", "mean IoU on val", "size", "licence of the weights")]
    for name, path in bundled().items():
        header = sources.read(path)[1]
        card, size = header["card"], f"{path.stat().st_size / 1e6:.1f} MB"
        classes = str(len(header["class_names"]))
        rows.append((name, card["data"], classes, card["score"], size, card["licence"]))
    for name, named in NAMES.items():
        score = f"{named.val_mean_iou} %" if named.val_mean_iou else "-"
        classes, size = str(len(named.class_names) or "a start"), f"{named.megabytes} MB"
        rows.append((name, named.trained_on, classes, score, size, LICENCES[named.folder]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [f"{name}: {how}" for name, how in BY_HAND.items()]
    lines += [
        f"Files are kept in {cache_folder()} ({CACHE_VARIABLE} names another folder).",
        "Mean IoU is the publisher's, without CRF. Whether you may use weights, check yourself.",
    ]
    return "\n".join(lines)
