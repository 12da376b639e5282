"""python -m deeplab_jax: what deeplab_jax keeps on this disk, how large it is, how to remove it."""

import argparse
import shlex
from pathlib import Path

from deeplab_jax import compilation
from deeplab_jax.weights import names


def main() -> None:
    """Prints `describe` of the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m deeplab_jax", description=__doc__)
    parser.add_argument(
        "--prepared-dir", type=Path, default=Path("prepared"), help="where prepared data sets lie"
    )
    print(describe(parser.parse_args().prepared_dir))


def describe(prepared_dir: Path) -> str:
    """A table of the kept folders and their sizes, and the commands that empty them."""
    weights, programs = names.cache_folder(), compilation.cache_folder()
    kept = {
        "prepared data sets": (
            size_below(prepared_dir),
            prepared_dir,
            f"rm -r {shlex.quote(str(prepared_dir))}",
        ),
        "downloaded weights": (size_below(weights), weights, f"rm -r {shlex.quote(str(weights))}"),
    }
    if programs is not None:
        size = size_below(programs) - (size_below(weights) if programs in weights.parents else 0)
        remove = f"find {shlex.quote(str(programs))} -maxdepth 1 -type f -delete"
        kept["compiled programs"] = (size, programs, remove)
    lines = [f"{name:20} {size / 1e6:10,.1f} MB  {path}" for name, (size, path, _) in kept.items()]
    lines += ["", "Each is made again when it is needed. While nothing runs, they are removed by:"]
    lines += [f"    {command}" for size, _, command in kept.values() if size]
    return "\n".join(lines if any(size for size, *_ in kept.values()) else lines[: len(kept)])


def size_below(folder: Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
