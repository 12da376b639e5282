"""What --help shows: options by group, those that people use first before all others."""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import options

COLUMN = 26
"""Where descriptions start."""

FIRST = (
    *("data.root", "weights", "workdir", "num-steps", "batch-size", "optim.learning-rate"),
    *("model.backbone", "model.aspp-rates", "model.norm", "fresh-head"),
    *("data.crop-size", "data.train-split", "data.val-split", "data.val-fraction"),
    *("seed", "evaluate-every", "save-every", "num-devices", "max-per-device", "remat"),
)
"""Options of training that people use first."""

TITLES = {
    "model": "Network",
    "data": "Data",
    "optim": "Solver",
    "eval": "Scoring",
    "crf": "Fully connected CRF",
    "grid": "Values of the first round",
    "": "More of the run",
}


def page(kind: type, default: Any, *, script: str, description: str, first: Sequence[str]) -> str:
    """The help of a script whose options are the dataclass `kind`; `default` is an instance of it
    or None."""
    width = max(shutil.get_terminal_size().columns, 40)
    known, told = options.options_of(kind), dict(descriptions(kind))
    defaults = dict(values(kind, default))
    positionals = options.positionals_of(kind)
    names = " ".join(metavar(name, hint) for name, hint in positionals.items())
    lines = [
        wrap(" ".join(f"usage: python experiments/{script} {names} [OPTIONS]".split()), width),
        "",
    ]
    lines += [wrap_text(description, width)]
    shown = [entry(metavar(n, h), told[n], None, width) for n, h in positionals.items()]
    lines += ["", "Arguments", *shown] if shown else []
    groups = [("Most used", [n for n in first if n in known])] if first else []
    rest = [name for name in known if name not in first]
    for group in dict.fromkeys(map(group_of, rest)):
        title = TITLES.get(group, group) if first or group else "Options"
        groups.append((title, [name for name in rest if group_of(name) == group]))
    groups.sort(key=lambda group: group[0] != "Most used")
    for title, members in groups:
        lines += ["", title]
        for name in members:
            lines.append(entry(spelt(name, known[name]), told[name], defaults.get(name), width))
    return "\n".join(lines)


def group_of(name: str) -> str:
    """The section of the help that an option stands in; those of the CRF have one of their own."""
    return "crf" if name.partition("-")[0] == "crf" else name.rpartition(".")[0]


def spelt(name: str, hint: Any) -> str:
    """An option as it is typed: a flag with both forms, any other with its value."""
    if hint is bool:
        return f"--{name}, --{options.negative(name)}"
    return f"--{name} {value_of(hint)}"


def metavar(name: str, hint: Any) -> str:
    several = typing.get_origin(typing.get_args(hint)[0]) is tuple
    return f"{name.upper().rstrip('S')} ..." if several else name.upper()


def value_of(hint: Any) -> str:
    """The placeholder for a value in the help.

    >>> value_of(tuple[int, ...]), value_of(typing.Literal["a", "b"]), value_of(Path | None)
    ('INT ...', '{a,b}', 'PATH')
    """
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return " or ".join(value_of(a) for a in arguments if a is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return value_of(arguments[0]).removesuffix(" ...") + " ..."
        return " ".join(map(value_of, arguments))
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    return {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH"}.get(hint, "VALUE")


def entry(option: str, text: str, value: Any, width: int) -> str:
    """An option and what it does, with its default."""
    if isinstance(value, bool):
        shown = "on" if value else "off"
    elif isinstance(value, tuple | list):
        shown = " ".join(map(str, value))
    else:
        shown = "" if value is None else str(value)
    default = f" (default: {shown})" if shown else ""
    indent = " " * COLUMN
    wrapped = textwrap.wrap(
        " ".join(text.split()) + default, width, initial_indent=indent, subsequent_indent=indent
    )
    head = f"  {option}"
    if len(head) + 2 <= COLUMN and wrapped:
        wrapped[0] = head.ljust(COLUMN) + wrapped[0][COLUMN:]
        return "\n".join(wrapped)
    return "\n".join([wrap(head, width), *wrapped])


def wrap(line: str, width: int) -> str:
    return textwrap.fill(
        line,
        width,
        subsequent_indent="      ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def wrap_text(text: str, width: int) -> str:
    """Paragraphs filled to the width; lines that are indented, such as commands, stay."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        indented = paragraph.startswith(" ")
        parts.append(paragraph if indented else textwrap.fill(paragraph, width))
    return "\n\n".join(parts)


def values(kind: type, instance: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each option's value in `instance`, or where that is None the default of its field."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        missing = None if field.default is dataclasses.MISSING else field.default
        value = missing if instance is None else getattr(instance, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from values(hints[field.name], value, f"{name}.")
        else:
            yield name, value


def descriptions(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The docstring under each field, those of base classes too; "" where there is none."""
    written: Mapping[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            written = {**written, **_docstrings(base)}
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            yield from descriptions(hints[field.name], f"{name}.")
        else:
            yield name, written.get(field.name, "")


def _docstrings(kind: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    pairs = zip(tree.body, tree.body[1:], strict=False)
    return {
        field.target.id: text.value.value
        for field, text in pairs
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }
