"""One file over HTTP: with progress, and going on where an earlier download was cut off."""

import http.client
import re
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

from tqdm import tqdm

TIMEOUT = 60
"""Seconds that a server may be silent."""

CHUNK = 2**20


class _AnotherRange(Exception):
    """The server sent another part of the file than it was asked for."""


def download(address: str, partial: Path, size: int | None = None) -> None:
    """Appends to `partial` what it lacks, or writes it anew where the server cannot go on.

    `size` is the whole file's in bytes, where it is known beforehand; otherwise the server's word
    is taken. What has arrived stays in `partial` when this raises.

    Raises:
      OSError, HTTPException: the server cannot be reached, refuses, falls silent, or closes the
        connection before the end.
    """
    there = partial.stat().st_size if partial.exists() else 0
    if there and there == size:
        return
    try:
        return _receive(address, partial, there, size)
    except _AnotherRange:
        pass
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not there:
            raise
        if _whole_size(error.headers) == there:
            return  # all of it has arrived before
    _receive(address, partial, 0, size)


def _receive(address: str, partial: Path, there: int, size: int | None) -> None:
    headers = {"Range": f"bytes={there}-"} if there else {}
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        is_part = getattr(response, "status", None) == http.client.PARTIAL_CONTENT
        goes_on = is_part and _first_byte(response.headers) == there
        if is_part and not goes_on:
            raise _AnotherRange
        start = there if goes_on else 0
        length = response.headers.get("Content-Length")
        whole = size if length is None else start + int(length)
        bar = tqdm(
            desc=partial.stem, total=whole, initial=start, unit="B", unit_scale=True, disable=None
        )
        with bar, partial.open("ab" if goes_on else "wb") as file:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    found = partial.stat().st_size
    if whole is not None and found < whole:
        raise ConnectionError(f"the connection broke after {found} of {whole} bytes")


def _first_byte(headers: http.client.HTTPMessage) -> int | None:
    """Where a part of a file begins; None where the server does not say."""
    told = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(told[1]) if told else None


def _whole_size(headers: Message) -> int | None:
    """The size that a server tells when it refuses a range."""
    told = re.match(r"bytes \*/(\d+)$", headers.get("Content-Range", ""))
    return int(told[1]) if told else None
