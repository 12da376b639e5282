"""Whether two runs ended with the same weights, to the bit.

python experiments/benchmarks/same_weights.py runs/one runs/other
"""

import sys
from pathlib import Path

import numpy as np

from deeplab_jax import runs
from deeplab_jax.weights import files


def main(one: Path, other: Path) -> None:
    arrays = [files.flatten(runs.load(workdir).variables) for workdir in (one, other)]
    differing = [name for name in arrays[0] if not np.array_equal(*(a[name] for a in arrays))]
    if differing:
        sys.exit(f"{len(differing)} of {len(arrays[0])} arrays differ, such as {differing[0]}")
    print(f"all {len(arrays[0])} arrays are the same, to the bit")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
