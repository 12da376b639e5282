"""Branches of ASPP that a port never trained, and networks without them.

Several PyTorch ports leave the loop over the branches after its first turn, so that only the first
two of four are summed. The others keep the values they were created with.
"""

import re
from collections.abc import Sequence

import numpy as np

from deeplab_jax.types import UserError
from deeplab_jax.weights.files import Flat, Header

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
    if not (spread := values.std()):
        return False
    values = values / spread
    fourth = np.mean(values**4)
    by_class = values.reshape(-1, values.shape[-1]).T
    by_tap = values.reshape(values.shape[0] * values.shape[1], -1)
    for view in (by_class, by_tap):
        error = ERRORS / np.sqrt(view.shape[1])
        same = np.eye(len(view), dtype=bool)
        bounds = error * np.where(same, np.sqrt(max(fourth - 1, 0)), 1.0) + 1e-9
        moments = abs(view @ view.T / view.shape[1] - same)
        if (moments > bounds).any() or (abs(view.mean(1)) > error).any():
            return False
    return True


def choose(
    flat: Flat, header: Header, branches: Sequence[int] | None, *, fresh_head: bool = False
) -> tuple[Flat, Header]:
    """Arrays and header with only the `branches` of the head; with all of them where it is None.

    A UserError where some were never trained and `branches` is None, without a `fresh_head`, and
    where it names others than the head has.
    """
    header = dict(header)
    never = header.pop("untrained_branches", ())
    every = range(_number_of_branches(flat))
    if branches is None:
        if never and not fresh_head:
            trained = [i for i in every if i not in never]
            raise UserError(
                f"branches {_listed(never)} of the head are still at their random start: the port "
                f"sums the others alone; give convert_weights.py --branches {_listed(trained)}, or "
                f"--branches {_listed(every)} to sum all of them"
            )
        return flat, header
    kept = sorted(set(branches))
    if not kept or len(kept) < len(branches) or not set(kept) <= set(every):
        raise UserError(
            f"the head has {len(every)} branches, and --branches asks for "
            f"{_listed(branches) or 'none'}; give some of {_listed(every)}, each once"
        )
    chosen = {}
    for name, array in flat.items():
        found = re.fullmatch(r"(head/\w+_)(\d+)(/\w+)", name)
        if found is None:
            chosen[name] = array
        elif (old := int(found[2]) - 1) in kept:
            chosen[f"{found[1]}{kept.index(old) + 1}{found[3]}"] = array
    rates = header["model"]["aspp_rates"]
    if left_out := [f"branch {i} (rate {rates[i]})" for i in every if i not in kept]:
        header["skipped"] = header.get("skipped", {}) | {LEFT_OUT: left_out}
    header["model"] = header["model"] | {"aspp_rates": tuple(rates[i] for i in kept)}
    return chosen, header


def _number_of_branches(flat: Flat) -> int:
    return sum(name.startswith("head/fc8_") and name.endswith("/kernel") for name in flat)


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
