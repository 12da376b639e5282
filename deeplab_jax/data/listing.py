"""Which files of a folder count, by one rule for photographs, masks, lists and archives.

Hidden files are left out: names that begin with a dot (`._x.jpg` of a Mac, `.DS_Store`, the folder
`.ipynb_checkpoints`) and the folder `__MACOSX`. Links to folders are followed.
"""

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from deeplab_jax.types import UserError

LEFT_BY_PROGRAMS = (".ipynb_checkpoints", "__MACOSX")


def is_hidden(path: Path | str) -> bool:
    """Whether any part of a path is hidden; give it relative to the folder the user named.

    >>> is_hidden("train/._x.jpg"), is_hidden(".ipynb_checkpoints/x.jpg"), is_hidden("x.jpg")
    (True, True, False)
    """
    parts = Path(path).parts
    return any(part == "__MACOSX" or part.startswith(".") and part != ".." for part in parts)


def is_stray(path: Path) -> bool:
    """Whether a file that a list names is hidden, as in a list that a program wrote.

    Hidden folders count, for whoever wrote the list named them, but not those of other programs.
    """
    return path.name.startswith(".") or any(part in LEFT_BY_PROGRAMS for part in path.parts)


def visible(paths: Iterable[Path]) -> list[Path]:
    """The paths whose last part is not hidden, sorted."""
    return sorted(path for path in paths if not is_hidden(path.name))


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, sorted."""
    return [path for path in visible(folder.iterdir()) if path.is_dir()]


def walk(folder: Path) -> Iterator[Path]:
    """All files below `folder` that are not hidden, in no order; links to folders are followed.

    A link that leads back to a folder it lies in is not followed: its files are found already.

    Raises:
      UserError: a folder below cannot be read, or a link leads to nothing.
    """
    yield from _walk(folder, frozenset({os.path.realpath(folder)}))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    """`above` holds the real paths of `folder` and of the folders it was reached through."""
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.is_dir(), e.is_symlink()) for e in entries]
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read ({error.strerror}); check its permissions."
        ) from None
    for name, is_folder, is_link in sorted(found):
        path = folder / name
        if name.startswith(".") or name == "__MACOSX":
            continue
        if not is_folder:
            # Links with a suffix are files; whoever reads them says that they are missing.
            if is_link and not path.suffix and not path.exists():
                raise UserError(
                    f"{path} is a link to {os.readlink(path)}, which is not there; mend the link, "
                    "or remove it."
                )
            yield path
        elif (real := os.path.realpath(path)) not in above:
            yield from _walk(path, above | {real})


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


def missing(path: Path) -> UserError:
    """The error for a file that is not there; it names what lies there in its place."""
    if path.is_symlink():
        return UserError(f"{path} is a link to {os.readlink(path)}, which is not there.")
    if not path.parent.is_dir():
        return UserError(f"{path} is missing, and so is its folder {path.parent}.")
    found = similar_names(path)
    if found:
        verb = "is" if len(found) == 1 else "are"
        return UserError(f"{path} is missing; {' and '.join(found)} {verb} there.")
    return UserError(f"{path} is missing; put it there or take it out of the list.")


SEPARATORS = (".", "_", "-", " ")


def similar_names(path: Path, most: int = 3) -> tuple[str, ...]:
    """Names beside `path` of its stem, in any case, with another suffix or more behind the stem."""
    names = _folded_names(path.parent, path.parent.stat().st_mtime_ns)
    found = []
    for start in (path.stem.casefold() + separator for separator in SEPARATORS):
        first = bisect_left(names, (start,))
        found += [name for folded, name in names[first : first + most] if folded.startswith(start)]
    return tuple(found[:most])


@lru_cache(maxsize=4)
def _folded_names(folder: Path, mtime_ns: int) -> list[tuple[str, str]]:
    """(name without regard to case, name) of what lies in a folder, sorted."""
    return sorted((path.name.casefold(), path.name) for path in visible(folder.iterdir()))
