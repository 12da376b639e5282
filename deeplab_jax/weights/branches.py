"""Branches of ASPP that a port never trained, and networks without them.

Several PyTorch ports leave the loop over the branches after its first turn, so that only the first
two of four are summed. The others keep the values they were created with.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.types import UserError
from deeplab_jax.weights.files import Flat

ERRORS = 6
"""How many standard errors a moment of independent draws may be off."""

LEFT_OUT = "branches that --branches leaves out"


def untrained(flat: Flat) -> tuple[int, ...]:
    """Branches, counted from 0, of a classifier that are still at their random start.

    Empty where all of them are, which is a head that nobody has trained yet.
    """
    if any(name.startswith("head/fc6_") for name in flat):
        return ()
    number = _number_of_branches(flat)
    found = tuple(i for i in range(number) if is_start(flat[f"head/fc8_{i + 1}/kernel"]))
    return found if len(found) < number else ()


def is_start(kernel: np.ndarray) -> bool:
    """Whether a classifier's kernel `[h, w, i, o]` is made of independent draws.

    Whatever the distribution they are from: its classes and its taps have equal means and sizes
    then, and are not correlated. Training leaves none of that.
    """
    values = np.asarray(kernel, np.float64)
    values = values - values.mean()
    spread = values.std()
    if not spread:
        return False
    values = values / spread
    taps = values.reshape(-1, *values.shape[2:])
    views = values.reshape(-1, values.shape[-1]).T, taps.reshape(len(taps), -1)
    fourth = np.mean(values**4)
    for view in views:  # by class, by tap
        errors = view @ view.T / view.shape[1] - np.eye(len(view))
        bounds = np.where(np.eye(len(view)), np.sqrt(max(fourth - 1, 0)), 1.0)
        if (abs(errors) > ERRORS * bounds / np.sqrt(view.shape[1]) + 1e-9).any():
            return False
        if (abs(view.mean(1)) > ERRORS / np.sqrt(view.shape[1])).any():
            return False
    return True


def choose(
    path: Path, flat: Flat, header: Mapping[str, Any], branches: Sequence[int] | None
) -> tuple[Flat, dict[str, Any]]:
    """Arrays and header with only the `branches` of the head; with all of them where it is None.

    Raises:
      UserError: some branches were never trained and `branches` is None, or it names others than
        the head has.
    """
    header = dict(header)
    never = tuple(header.pop("untrained_branches", ()))
    number = _number_of_branches(flat)
    if branches is None:
        if never:
            trained = [i for i in range(number) if i not in never]
            raise UserError(
                f"{path} has a head of {number} branches, and branches {_listed(never)} are still "
                "at their random start: its port sums the others alone; convert it with "
                f"convert_weights.py --branches {_listed(trained)}, or with --branches "
                f"{_listed(range(number))} to sum all of them"
            )
        return flat, header
    kept = sorted(set(branches))
    if not kept or len(kept) < len(branches) or not set(kept) <= set(range(number)):
        raise UserError(
            f"{path} has a head of {number} branches, and --branches asks for "
            f"{_listed(branches) or 'none'}; give some of {_listed(range(number))}, each once"
        )
    new = {str(old + 1): str(i + 1) for i, old in enumerate(kept)}
    chosen = {}
    for name, array in flat.items():
        found = re.fullmatch(r"(head/\w+_)(\d+)(/\w+)", name)
        if found is None:
            chosen[name] = array
        elif found[2] in new:
            chosen[found[1] + new[found[2]] + found[3]] = array
    rates = header["model"]["aspp_rates"]
    left_out = [f"branch {i} (rate {rates[i]})" for i in range(number) if i not in kept]
    header["skipped"] = header.get("skipped", {}) | ({LEFT_OUT: left_out} if left_out else {})
    header["model"] = header["model"] | {"aspp_rates": tuple(rates[i] for i in kept)}
    return chosen, header


def _number_of_branches(flat: Flat) -> int:
    return sum(name.startswith("head/fc8_") and name.endswith("/kernel") for name in flat)


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
