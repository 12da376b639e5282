"""Read the text of a program that XLA compiled: kernels, convolutions, collectives, bytes."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FREE = {
    "after-all", "bitcast", "constant", "domain", "get-tuple-element", "iota", "opt-barrier",
    "parameter", "partition-id", "replica-id", "tuple",
}  # fmt: skip
"""Instructions that start nothing on the device."""

COLLECTIVES = (
    "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute",
)  # fmt: skip

BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}


@dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    """What follows the operands; of a constant its value."""

    @property
    def target(self) -> str:
        """The library call of a custom call."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Program:
    computations: dict[str, list[Instruction]]
    entry: str


@dataclass(frozen=True)
class Convolution:
    """One convolution of a compiled program."""

    gradient: str
    """forward, input gradient or weight gradient."""
    window: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    layout: str
    """Dimension labels of input, kernel and output."""
    call: str
    """The library's function, or empty where XLA writes the kernel."""
    shape: str
    kernel: int | None
    """Rows of the network's kernel that it belongs to."""

    @property
    def exceeds_kernel(self) -> bool:
        return self.kernel is not None and max(self.window, default=1) > self.kernel


def read(text: str) -> Program:
    """The computations of a program as `compiled.as_text()` gives it."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-$]+) \(.*\) -> .* \{$", line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _instruction(line)):
            current.append(instruction)
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(?:ROOT )?%?([\w.\-$]+) = (.*)$", line)
    if not found:
        return None
    name, rest = found[1], found[2]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 1
    operands = tuple(re.findall(r"%([\w.\-$]+)", rest[:end]))
    if opcode == "constant":
        return Instruction(name, shape, opcode, (), rest[:end])
    return Instruction(name, shape, opcode, operands, rest[end + 1 :])


def _closing(text: str) -> int:
    """Where the parenthesis closes that `text` begins with."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i
    return len(text)


def num_bytes(shape: str) -> int:
    """Bytes of a shape as XLA writes it, `bf16[10,41,41,256]{3,2,1,0}` or a tuple of such."""
    total = 0
    for kind, sizes in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
        bits = BITS.get(kind) or int(re.search(r"\d+", kind)[0]) if kind != "token" else 0
        total += bits * math.prod(int(n) for n in sizes.split(",") if n) // 8
    return total


def executed(program: Program, name: str | None = None, times: int = 1) -> Iterator:
    """(instruction, computation, times) of all that one run starts, the inside of loops too.

    Of a conditional the branch with the most instructions counts. A loop whose turns cannot be
    told counts once.
    """
    name = name or program.entry
    for instruction in program.computations[name]:
        called = _called(instruction)
        if instruction.opcode == "while":
            for inner in called:
                yield from executed(program, inner, times * _turns(program, instruction))
        elif instruction.opcode == "conditional":
            longest = max(called, key=lambda c: len(program.computations[c]))
            yield from executed(program, longest, times)
        elif instruction.opcode in ("call", "async-start"):
            for inner in called:
                yield from executed(program, inner, times)
        elif instruction.opcode not in FREE and not instruction.opcode.endswith(
            ("-done", "-update")
        ):
            yield instruction, name, times


def _turns(program: Program, loop: Instruction) -> int:
    """The number of turns of a loop: as a GPU's program states it, or else the bound of the loop's
    counter, which starts at 0 in the loops of JAX."""
    if stated := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(stated[1])
    condition = re.search(r"condition=%?([\w.\-$]+)", loop.attributes)
    inside = {i.name: i for i in program.computations[condition[1]]} if condition else {}
    for compare in inside.values():
        bound = inside.get(compare.operands[-1]) if compare.operands else None
        if "direction=LT" in compare.attributes and bound and bound.opcode == "constant":
            return int(bound.attributes)
    return 1


def _called(instruction: Instruction) -> list[str]:
    one = re.findall(
        r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%?([\w.\-$]+)",
        instruction.attributes,
    )
    many = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    return one + ([n.strip().lstrip("%") for n in many[1].split(",")] if many else [])


def convolutions(program: Program, kernels: dict[str, Sequence[int]]) -> list[Convolution]:
    """All convolutions of a program, in every computation.

    `kernels` maps the names of the network's kernels, as in "trunk/conv1", to their shapes.
    """
    found = []
    for instructions in program.computations.values():
        for instruction in instructions:
            window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
            is_call = instruction.opcode == "custom-call" and "conv" in instruction.target
            if (is_call or instruction.opcode == "convolution") and window:
                found.append(_convolution(instruction, window[1], kernels))
    return found


def _convolution(instruction: Instruction, window: str, kernels) -> Convolution:
    def numbers(name: str) -> tuple[int, ...]:
        part = re.search(rf"\b{name}=([\dx]+)", window)
        return tuple(int(n) for n in part[1].split("x")) if part else ()

    path = instruction.op_name
    name = max((n for n in kernels if f"/{n}/" in path), key=len, default=None)
    labels = re.search(r"dim_labels=([^\s,]+)", instruction.attributes)
    return Convolution(
        gradient=_gradient(instruction, kernels),
        window=numbers("size"),
        dilation=numbers("rhs_dilate"),
        stride=numbers("stride"),
        layout=labels[1] if labels else "",
        call=instruction.target,
        shape=re.sub(r"\{[^}]*\}", "", instruction.shape),
        kernel=kernels[name][0] if name else None,
    )


def _gradient(instruction: Instruction, kernels) -> str:
    if "BackwardFilter" in instruction.target:
        return "weight gradient"
    if "BackwardInput" in instruction.target:
        return "input gradient"
    if "transpose(" not in instruction.op_name:
        return "forward"
    first = re.search(r"\[([\d,]*)\]", instruction.shape)
    sizes = [int(n) for n in first[1].split(",") if n] if first else []
    of_kernels = (_without_ones(shape) for shape in kernels.values())
    return "weight gradient" if _without_ones(sizes) in of_kernels else "input gradient"


def _without_ones(sizes: Sequence[int]) -> list[int]:
    """In order of size: TPUs compute a weight gradient with a further dimension of 1."""
    return sorted(n for n in sizes if n != 1)


def summary(text: str, kernels: dict[str, Sequence[int]]) -> dict[str, Any]:
    """What aot.py reports of a compiled program, as JSON values.

    `kernels` counts what the program names once, `launches` every turn of a loop. `bytes` counts
    the operands and results of each launch once, `repeated_bytes` those of the second and further
    turns of loops alone, `collectives` what a device gives to each kind. `cycles` are those that a
    TPU's compiler expects.
    """
    program = read(text)
    shapes = {(name, i.name): i.shape for name, body in program.computations.items() for i in body}
    started = list(executed(program))
    inside = [i for body in program.computations.values() for i in body]
    found = convolutions(program, kernels)
    moved, bytes_moved, repeated, cycles = Counter(), 0, 0, 0
    for instruction, name, times in started:
        given = sum(num_bytes(shapes.get((name, o), "")) for o in instruction.operands)
        taken = num_bytes(instruction.shape) + given
        bytes_moved, repeated = bytes_moved + times * taken, repeated + (times - 1) * taken
        expected = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
        cycles += times * int(expected[1]) if expected else 0
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            moved[kind] += times * given
    return {
        "kernels": len(started),
        "launches": sum(times for _, _, times in started),
        "fusions": sum(i.opcode == "fusion" for i, _, _ in started),
        "custom_calls": dict(Counter(i.target for i, _, _ in started if i.target)),
        "float_scatters": sum(
            i.opcode in ("scatter", "select-and-scatter")
            and re.match(r"\(?(f|bf)\d", i.shape) is not None
            for i in inside
        ),
        "conditionals": sum(i.opcode == "conditional" for i in inside),
        "collectives": dict(moved),
        "bytes": bytes_moved,
        "repeated_bytes": repeated,
        "cycles": cycles,
        "largest_window": max((max(c.window, default=1) for c in found), default=0),
        "windows_above_kernel": sum(c.exceeds_kernel for c in found),
        "convolutions": grouped(found),
    }


def grouped(found: list[Convolution]) -> list[dict[str, Any]]:
    """Equal convolutions once, with their number."""
    counts = Counter(json.dumps(asdict(c)) for c in found)
    return [{**json.loads(c), "number": n} for c, n in counts.items()]
