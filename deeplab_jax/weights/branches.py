"""Branches of ASPP that a port never trained, and networks without them.

Several PyTorch ports leave the loop over the branches after its first turn, so that only the first
two of four are summed. The others keep the values they were created with, which is how they are
recognised here: kernels from N(0, 0.01) and biases from PyTorch's uniform start.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeplab_jax.types import UserError
from deeplab_jax.weights.files import Flat

START_DEVIATION = 0.01
"""Standard deviation that every port draws the kernels of its classifier with."""

ERRORS = 5
"""How many standard errors a moment of the sample may be off."""

LEFT_OUT = "branches that --branches leaves out"


def untrained(flat: Flat) -> tuple[int, ...]:
    """Branches, counted from 0, of a classifier that are still at their random start.

    Empty where all of them are, which is a head that nobody has trained yet.
    """
    if any(name.startswith("head/fc6_") for name in flat):
        return ()
    number = _number_of_branches(flat)
    found = tuple(
        i
        for i in range(number)
        if is_start(flat[f"head/fc8_{i + 1}/kernel"], flat[f"head/fc8_{i + 1}/bias"])
    )
    return found if len(found) < number else ()


def is_start(kernel: np.ndarray, bias: np.ndarray) -> bool:
    """Whether a classifier's kernel `[h, w, i, o]` and bias `[o]` are as PyTorch ports draw them.

    The kernel's mean, deviation and kurtosis are compared with those of N(0, 0.01); the biases
    must lie within 1 / sqrt(h w i), the bounds of PyTorch's start.
    """
    values = np.asarray(kernel, np.float64).ravel() / START_DEVIATION
    size = values.size
    moments = (
        (values.mean(), 1),
        (values.std() - 1, 1 / 2),
        (np.mean(values**4) - 3, 96),  # the variance of the fourth power of a normal variable
    )
    drawn = all(abs(moment) <= ERRORS * np.sqrt(variance / size) for moment, variance in moments)
    fan_in = np.prod(kernel.shape[:3])
    return bool(drawn and (np.abs(bias) <= (1 + 1e-6) / np.sqrt(fan_in)).all())


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
            raise UserError(_advice(path, never, number))
        return flat, header
    kept = sorted(set(branches))
    if not kept or len(kept) < len(branches) or not set(kept) <= set(range(number)):
        raise UserError(
            f"{path} has a head of {number} branches, and --branches asks for "
            f"{_listed(branches) or 'none'}; give some of {_listed(range(number))}, each once"
        )
    return _without_others(flat, kept), _told(header, kept, number)


def _advice(path: Path, never: tuple[int, ...], number: int) -> str:
    trained = [i for i in range(number) if i not in never]
    return (
        f"{path} has a head of {number} branches, and branches {_listed(never)} are still at their "
        "random start (N(0, 0.01)): its port sums the others alone; convert it with "
        f"convert_weights.py --branches {_listed(trained)}, or with --branches "
        f"{_listed(range(number))} to sum all of them"
    )


def _without_others(flat: Flat, kept: Sequence[int]) -> Flat:
    """The head's branches `kept`, numbered anew."""
    new = {str(old + 1): str(i + 1) for i, old in enumerate(kept)}
    chosen = {}
    for name, array in flat.items():
        if name.startswith("head/"):
            _, layer, role = name.split("/")
            kind, _, number = layer.partition("_")
            if number not in new:
                continue
            name = f"head/{kind}_{new[number]}/{role}"
        chosen[name] = array
    return chosen


def _told(header: dict[str, Any], kept: Sequence[int], number: int) -> dict[str, Any]:
    rates = header["model"]["aspp_rates"]
    left_out = [f"branch {i} (rate {rates[i]})" for i in range(number) if i not in kept]
    skipped = dict(header.get("skipped", {})) | ({LEFT_OUT: left_out} if left_out else {})
    model = header["model"] | {"aspp_rates": tuple(rates[i] for i in kept)}
    return header | {"model": model, "skipped": skipped}


def _number_of_branches(flat: Flat) -> int:
    return sum(name.startswith("head/fc8_") and name.endswith("/kernel") for name in flat)


def _listed(numbers: Sequence[int]) -> str:
    return " ".join(map(str, numbers))
