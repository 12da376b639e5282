"""Which files of a folder count, by one rule for photographs, masks, lists and archives.

Hidden files are left out: names that begin with a dot (`._x.jpg` of a Mac, `.DS_Store`, the folder
`.ipynb_checkpoints`) and the folder `__MACOSX`. Links to folders are followed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

from deeplab_jax.types import UserError


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder is that of a hidden one."""
    return name.startswith(".") or name == "__MACOSX"


def is_stray(path: Path) -> bool:
    """Whether a file that a list names is hidden, as in a list that a program wrote; hidden folders
    count, which its author has named, but not those of other programs."""
    return path.name.startswith(".") or bool({".ipynb_checkpoints", "__MACOSX"} & {*path.parts})


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths whose last part is not hidden, sorted."""
    return sorted(path for path in paths if not is_hidden(path.name))


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted; none where it is missing."""
    return [p for p in visible(folder.iterdir()) if p.is_dir()] if folder.is_dir() else []


def first_folder(parent: Path, *names: str) -> Path | None:
    """The first of some folders in `parent` that exists."""
    return next((parent / name for name in names if (parent / name).is_dir()), None)


def walk(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below `folder` that are not hidden; links to folders are followed, but not back to
    one of `above`, the real paths of the folders it was reached through. A UserError for a folder
    that cannot be read, or a link to nothing."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not is_hidden(entry.name)]
            inside = sorted((e.name, e.is_dir(), e.is_symlink()) for e in shown)
    except OSError as error:
        raise unreadable(folder, error) from None
    for name, is_folder, is_link in inside:
        path = folder / name
        if is_folder:
            yield from walk(path, above | {real})
        # Links with a suffix are files; whoever reads them says that they are missing.
        elif is_link and not path.suffix and not path.exists():
            raise missing(path)
        else:
            yield path


def describe_unused(folder: Path, paths: Sequence[Path]) -> str:
    """How many files of a folder are not used, by their suffixes, and one of them.

    >>> describe_unused(Path("x"), [Path("x/a.txt"), Path("x/b.raw"), Path("x/c.raw")])
    'x: 3 files are not used (2 .raw, 1 .txt), such as a.txt'
    """
    counts = Counter(path.suffix.lower() or "without suffix" for path in paths)
    kinds = ", ".join(f"{number} {suffix}" for suffix, number in counts.most_common(4))
    files = "1 file is" if len(paths) == 1 else f"{len(paths)} files are"
    return f"{folder}: {files} not used ({kinds}), such as {os.path.relpath(paths[0], folder)}"


def printable(text: str | Path) -> str:
    """A text in which bytes of file names that are not UTF-8 are written as \\udcXX.

    >>> printable("caf\\udce9.jpg")
    'caf\\\\udce9.jpg'
    """
    return str(text).encode(errors="backslashreplace").decode()


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder that the system does not let us read."""
    return UserError(f"{path} cannot be read ({error.strerror}); check its permissions.")


def missing(path: Path) -> UserError:
    """The error for a file that is not there; it names what lies there in its place."""
    if path.is_symlink():
        target = os.readlink(path)
        return UserError(f"{path} is a link to {target}, which is not there; mend or remove it.")
    if not path.parent.is_dir():
        return UserError(f"{path} is missing, and so is its folder {path.parent}.")
    names = _names_in(path.parent, path.parent.stat().st_mtime_ns)
    alike = re.compile(re.escape(path.stem) + r"([._\- ].*|)", re.IGNORECASE)
    if similar := list(islice(filter(alike.fullmatch, names), 3)):
        return UserError(f"{path} is missing; beside it: {', '.join(similar)}.")
    return UserError(f"{path} is missing; put it there or take it out of the list.")


@lru_cache(maxsize=4)
def _names_in(folder: Path, mtime_ns: int) -> list[str]:
    return [path.name for path in visible(folder.iterdir())]
