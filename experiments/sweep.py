"""Train with every combination of some options' values and several seeds; tables and a figure.

    python experiments/sweep.py --presets small --root camvid --vary optim.learning-rate 0.01 0.03
    python experiments/sweep.py --vary optim.learning-rate 0.01 0.03 \\
        --vary model.aspp-rates "6 12 18 24" "2 4 8 12" --seeds 0 1 -- --num-steps 400

--vary names an option of train_voc.py, then its values; a value of several words stands in quotes.
Each run is one train_voc.py command, printed as it could be pasted, in a process of its own, one
a device; options behind "--" go to all of them. The same command typed again, after a kill too,
goes on where it was. Leaves table.md, table.csv, runs.csv and figure.png.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cli
import options as names
import sweep_options
import tyro

from deeplab_jax.config import Config
from deeplab_jax.types import UserError


@dataclass(frozen=True)
class Options(sweep_options.Options):
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """An option of train_voc.py and its values; may be given several times."""
    presets: tuple[str, ...] = ("quickstart",)
    """Networks and recipes that the options change."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    common = cli.split_arguments()
    given = cli.parse(Options, __doc__)

import bench

from deeplab_jax.models.deeplab import DeepLabV2

RATES = "model.aspp-rates"


@dataclass(frozen=True)
class Varied:
    """An option of train_voc.py by its whole name, and the words of each value by its label."""

    option: str
    values: Mapping[str, tuple[str, ...]]


def main(options: Options, common: tuple[str, ...]) -> None:
    varied = [read_varied(words) for words in options.vary]
    if not varied:
        raise UserError("nothing varies: give --vary OPTION VALUE VALUE, such as --vary batch-size")
    if len({v.option for v in varied}) < len(varied):
        raise UserError("an option is varied twice: give all its values behind one --vary")
    bench.run(
        bench.Table(
            "Sweep of " + ", ".join(v.option for v in varied),
            entries(options.presets, varied, named=len(varied) > 1),
            settings=partial(settings, [v.option for v in varied]),
            published={},
            source="",
        ),
        options,
        common,
        output=options.output or Path("runs") / ("sweep_" + "_".join(v.option for v in varied)),
    )


def read_varied(words: Sequence[str]) -> Varied:
    """An option and its values as they were typed behind --vary.

    Raises:
      UserError: there is no such option, it has no value, or one value twice.
    """
    if not words:
        raise UserError("--vary needs an option, then values: --vary batch-size 5 10")
    name, *values = words
    option = names.resolve(Config, name.removeprefix("--"))
    if option in ("seed", "workdir", "data.root", "prepared-dir"):
        raise UserError(f"--vary {option}: a sweep sets this itself, see --seeds, --output, --root")
    if not values:
        raise UserError(f"--vary {name} needs values, such as --vary optim.learning-rate 0.01 0.03")
    if len(set(values)) < len(values):
        raise UserError(f"--vary {name} has a value twice")
    return Varied(option, {value: tuple(shlex.split(value)) for value in values})


def entries(
    presets: Sequence[str], varied: Sequence[Varied], *, named: bool = False
) -> list[bench.Entry]:
    """A row for each preset and combination of values; with `named` labels contain the options."""
    rows = []
    for preset, *chosen in product(presets, *(v.values for v in varied)):
        pairs = list(zip(varied, chosen, strict=True))
        labels = [
            f"{v.option.rpartition('.')[2]} {label}" if named else label for v, label in pairs
        ]
        label = " ".join([preset] * (len(presets) > 1) + [", ".join(labels)])
        words = [w for v, value in pairs for w in (f"--{v.option}", *v.values[value])]
        rows.append(bench.Entry(label, preset, tuple(words)))
    return rows


def settings(varied: Sequence[str], config: Config, model: DeepLabV2) -> dict[str, str]:
    """The columns: what the trained run has of each option varied."""
    return {option: setting(option, config, model) for option in varied}


def setting(option: str, config: Config, model: DeepLabV2) -> str:
    """An option's value; rates with a dagger where they leave the score map."""
    if option == RATES:
        return bench.rates_column(config, model)
    value: Any = config
    for part in names.positive(option).replace("-", "_").split("."):
        value = getattr(value, part)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    cli.run(partial(main, common=common), given)
