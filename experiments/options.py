"""The options of a script by their names: what a user typed, in the form that tyro parses.

An option of a group may be typed without the group where only one group has it: `--learning-rate`
for `--optim.learning-rate`. A flag is `--remat` or `--no-remat`, in a group `--data.no-mirror`;
`--remat True`, the form of earlier versions, is still read.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

import tyro

from deeplab_jax.errors import UserError

INFINITE = float("inf")

TRUTH = {"true": True, "false": False}

CALLED = {
    "optim.learning-rate": "lr base-lr init-lr initial-lr",
    "optim.weight-decay": "wd decay l2",
    "optim.policy": "lr-policy scheduler lr-scheduler schedule",
    "num-steps": "iters iterations num-iterations num-iters max-iter max-iters max-steps steps "
    "updates train-steps",
    "batch-size": "batch bs batchsize train-batch-size train-batch batch-size-per-gpu",
    "data.root": "data dataset dataroot data-dir data-path data-root dataset-dir image-dir voc",
    "data.crop-size": "crop image-size img-size input-size size resolution",
    "data.mirror": "flip hflip random-flip",
    "data.augmentation-scales": "scale random-scale scale-range",
    "num-devices": "gpus gpu ngpus num-gpus gpu-ids devices device",
    "workers": "num-workers nworkers j threads",
    "workdir": "work-dir output output-dir out out-dir save-dir logdir log-dir exp-dir folder "
    "checkpoint-dir run-dir",
    "weights": "pretrained checkpoint ckpt init weight init-from load-from pretrained-weights",
    "model.dtype": "amp fp16 bf16 half mixed-precision bfloat16",
    "model.aspp-rates": "rates atrous-rates dilation dilations aspp",
    "max-per-device": "accumulation accum grad-accum gradient-accumulation-steps accum-steps",
    "evaluate-every": "eval-every val-every eval-interval val-interval eval-freq",
    "save-every": "save-interval save-freq checkpoint-every",
    "log-every": "log-interval print-freq log-freq",
    "class-balance": "class-weights balance",
    "remat": "gradient-checkpointing checkpointing",
    "num-photographs": "images num-images num-drawn sheet n",
    "root": "data dataset dataroot data-dir data-path data-root data.root",
    "output": "out out-dir output-dir save-dir dest o",
    "crf": "use-crf dense-crf densecrf",
    "flip": "mirror hflip",
    "tile": "tile-size crop-size",
}
"""Our options, and what other tools (and earlier versions) call them."""

ANSWERS = {
    "epochs": "training is counted in updates, not epochs: --num-steps, each of --batch-size "
    "photographs",
    "resume": "the same command typed again goes on where it was: leave it out",
    "num-classes": "the classes come with the data set: leave it out",
    "formulation": "each platform's operations are chosen when a program is compiled: leave it out",
    "preset": "a preset comes first and without a name: train_voc.py PRESET [OPTIONS]",
    "crf": "a trained network is scored after the CRF by evaluate_voc.py WORKDIR --crf; "
    "--crf-iterations trains through it",
}
ALIKE = {
    "epochs": "num-epochs max-epochs epoch",
    "resume": "continue restart",
    "preset": "arch network net model config cfg",
    "num-classes": "classes nclass",
}
"""Other names for the entries of ANSWERS."""

RENAMED = {"images": "num-photographs", "num-drawn": "num-photographs", "sheet": "num-photographs"}
"""Options of earlier versions that are still read, where the script has the one on the right."""


def typed_fields(arguments: Sequence[str]) -> frozenset[str]:
    """The fields that options name, in the form of `canonical`.

    >>> sorted(typed_fields(["--num-steps", "5", "--model.aspp-rates=1", "--data.no-mirror"]))
    ['data.mirror', 'model.aspp_rates', 'num_steps']
    """
    names = (a[2:].split("=")[0].replace("-", "_") for a in arguments if a.startswith("--"))
    return frozenset(positive(name, "_") for name in names)


def positive(name: str, dash: str = "-") -> str:
    """The flag that a `no-` form negates.

    >>> positive("data.no-mirror"), positive("model.norm")
    ('data.mirror', 'model.norm')
    """
    group, dot, last = name.rpartition(".")
    return group + dot + last.removeprefix(f"no{dash}")


def negative(name: str) -> str:
    """The form of a flag that sets it to False."""
    group, dot, last = name.rpartition(".")
    return f"{group}{dot}no-{last}"


def options_of(kind: type) -> dict[str, typing.Any]:
    """The type of each option, by its name without the leading dashes."""
    return dict(_fields(kind, "", positional=False))


def positionals_of(kind: type) -> dict[str, typing.Any]:
    """The type of each argument that has no dashes, in order."""
    return dict(_fields(kind, "", positional=True))


def _fields(kind: type, prefix: str, *, positional: bool) -> Iterator[tuple[str, typing.Any]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    own = kind.__dict__.get("__annotations__", {})
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own):
        name, hint = prefix + field.name.replace("_", "-"), hints[field.name]
        group = typing.get_args(hint)[0] if is_unnamed(hint) else hint
        if dataclasses.is_dataclass(group):
            inside = prefix if is_unnamed(hint) else f"{name}."
            yield from _fields(group, inside, positional=positional)
        elif is_positional(hint) == positional:
            yield name, hint


def is_positional(hint: typing.Any) -> bool:
    return tyro.conf.Positional[int].__metadata__[0] in getattr(hint, "__metadata__", ())


def is_unnamed(hint: typing.Any) -> bool:
    """Whether the options of a group do not carry its name: tyro.conf.arg(name="")."""
    return any(getattr(mark, "name", None) == "" for mark in getattr(hint, "__metadata__", ()))


def canonical(kind: type, arguments: Sequence[str]) -> list[str]:
    """The arguments with every option under its whole name, and flags without a value.

    Raises:
      UserError: an option is none of `kind`, or may be one of several; or a value is not one that
        its option takes.
    """
    known, words, found = options_of(kind), list(arguments), []
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--" or word.startswith("--tyro-"):
            found.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = resolve(kind, name)
        if known[positive(name) if name not in known else name] is not bool:
            found.append(f"--{name}{equals}{value}")
            continue
        if not equals and words and words[0].lower() in TRUTH:
            equals, value = "=", words.pop(0)
        if equals and value.lower() not in TRUTH:
            raise UserError(f"--{name} is a flag and takes no value; leave {value!r} out")
        off = (name not in known) != (bool(equals) and not TRUTH[value.lower()])
        flag = name if name in known else positive(name)
        found.append(f"--{negative(flag) if off else flag}")
    check_values(kind, found)
    return found


def check_values(kind: type, words: Sequence[str]) -> None:
    """Refuses what tyro cannot read from words in the form of `canonical`.

    Raises:
      UserError: an option has a wrong value or none, an argument is missing, or a word belongs to
        no option.
    """
    known, left, alone, given = options_of(kind), list(words), [], set()
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            alone.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        given.add(name)
        if known.get(name, bool) is bool:
            continue
        values = [value] if equals else []
        most = 0 if equals else number_of_values(known[name])
        while left and len(values) < most and not left[0].startswith("--"):
            values.append(left.pop(0))
        check_value(f"--{name}", known[name], values)
    for field in dataclasses.fields(kind):
        name = field.name.replace("_", "-")
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name in known and name not in given:
            raise UserError(f"--{name} is missing; --help shows what to give")
    for name, hint in positionals_of(kind).items():
        count = int(min(number_of_values(hint), len(alone)))
        if not count and number_of_values(hint) < INFINITE:
            raise UserError(f"{name.upper()} is missing; --help shows what to give")
        check_value(name.upper(), hint, alone[:count])
        alone = alone[count:]
    if alone:
        raise UserError(f"{alone[0]!r} belongs to no option; --help shows all options")


def number_of_values(hint: typing.Any) -> float:
    """How many values follow an option at most."""
    kind = plain_type(hint)
    if typing.get_origin(kind) is not tuple:
        return 1
    parts = typing.get_args(kind)
    return INFINITE if parts[-1] is Ellipsis else len(parts)


def plain_type(hint: typing.Any) -> typing.Any:
    """A type without None and annotations.

    >>> plain_type(int | None), plain_type(typing.Annotated[float, "metres"])
    (<class 'int'>, <class 'float'>)
    """
    if typing.get_origin(hint) is typing.Annotated:
        return plain_type(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (kind,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        return kind
    return hint


def check_value(option: str, hint: typing.Any, values: Sequence[str]) -> None:
    """Refuses values that are not of the type `hint`.

    Raises:
      UserError: says what the option takes and what was given.
    """
    kind, most = plain_type(hint), number_of_values(hint)
    several = typing.get_origin(kind) is tuple
    part = plain_type(typing.get_args(kind)[0]) if several else kind
    choices = list(map(str, typing.get_args(part))) if is_literal(part) else []
    takes = listed(choices) if choices else NUMBERS.get(part, ("a value", "values"))[several]
    takes = f"{option} takes {f'{most} ' if several and most < INFINITE else ''}{takes}, and"
    if hint is not kind and list(values) == ["None"]:
        return
    if len(values) < most < INFINITE:
        raise UserError(f"{takes} {len(values) or 'nothing'} was given; see --help")
    for value in values:
        if choices and value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            cure = f"did you mean {near[0]}?" if near else "see --help"
            raise UserError(f"{takes} {value!r} was given; {cure}")
        if part in NUMBERS and not is_number(part, value):
            raise UserError(f"{takes} {value!r} was given; see --help")


def listed(choices: Sequence[str]) -> str:
    """Choices in words.

    >>> listed(["caffe", "torch"]), listed(["a", "b", "c"])
    ('caffe or torch', 'a, b or c')
    """
    return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))


def is_literal(kind: typing.Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


NUMBERS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}
"""What options of numbers take: one value, several."""


def is_number(kind: type, text: str) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def resolve(kind: type, typed: str) -> str:
    """The whole name of an option, with `no-` where a flag was typed so.

    Raises:
      UserError: there is no such option, with what was probably meant; or there are several.
    """
    known, name = options_of(kind), typed.replace("_", "-")
    flags = {negative(flag): flag for flag, hint in known.items() if hint is bool}
    whole = [*known, *flags]
    if name in whole:
        return name
    short = [full for full in whole if full.rpartition(".")[2] == name]
    if len(short) == 1:
        return short[0]
    if len(short) > 1:
        raise UserError(f"--{typed} may be {either(short)}: say which")
    if RENAMED.get(name) in known:
        return RENAMED[name]
    raise UserError(explain(kind, typed, name, known))


def explain(kind: type, typed: str, name: str, known: Mapping[str, object]) -> str:
    """What a user should type in place of an option that does not exist."""
    missing = f"there is no option --{typed}"
    if name in positionals_of(kind) or f"{name}s" in positionals_of(kind):
        return f"{missing}: type its value alone, before the options"
    last = name.rpartition(".")[2]
    same = [ours for ours in known if ours.rpartition(".")[2] == last]
    same += [ours for ours, others in CALLED.items() if ours in known and last in others.split()]
    if same:
        return f"{missing}: it is {either(same)} here"
    questions = [q for q in ANSWERS if last in (q, *ALIKE.get(q, "").split())]
    if questions and "num-steps" in known:
        return f"{missing}: {ANSWERS[questions[0]]}"
    lasts = {ours.rpartition(".")[2]: ours for ours in known}
    near = difflib.get_close_matches(name, known, n=1) or [
        lasts[ours] for ours in difflib.get_close_matches(last, lasts, n=1)
    ]
    return f"{missing}" + (f"; did you mean --{near[0]}?" if near else "; --help shows all")


def either(names: Sequence[str]) -> str:
    return " or ".join(f"--{name}" for name in names)
