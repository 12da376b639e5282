"""Train with several sets of ASPP rates, seeds and networks: the paper's Table 3, on any data.

    python experiments/sweep_aspp.py --root camvid --presets small --seeds 0 1 -- --num-steps 400
    python experiments/sweep_aspp.py --root VOCdevkit -- --weights vgg16.pth
    python experiments/sweep_aspp.py --presets quickstart --rates ASPP-S 1,2,3,4 -- --num-steps 100

Each run is one train_voc.py command, printed as it could be pasted, in a process of its own, one
a device; options behind "--" go to all of them. The same command typed again, after a kill too,
goes on where it was. Leaves table.md, table.csv, runs.csv and figure.png. Times and numbers:
experiments/results/README.md.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cli
import sweep_options

from deeplab_jax import paper
from deeplab_jax.types import UserError

RATES = {"LargeFOV": (12,), "ASPP-S": (2, 4, 8, 12), "ASPP-L": (6, 12, 18, 24)}
"""The sets of Section 4.1.1."""

PUBLISHED = {row.label: row for row in paper.rows("3")}
"""The paper's rows for these."""


@dataclass(frozen=True)
class Options(sweep_options.Options):
    presets: tuple[str, ...] = ()
    """Networks and recipes; the rates of each are replaced. Without any: the paper's presets of
    Table 3, and table3_aspp_l with its rates replaced for other rates."""
    rates: tuple[str, ...] = tuple(RATES)
    """LargeFOV, ASPP-S, ASPP-L, or rates such as 3,6,9."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    common = cli.split_arguments()
    given = cli.parse(Options, __doc__)

import bench
import sweep


def main(options: Options, common: tuple[str, ...]) -> None:
    varied = sweep.Varied("model.aspp-rates", {name: rates_of(name) for name in options.rates})
    if len(varied.values) < len(options.rates):
        twice = next(name for name in options.rates if options.rates.count(name) > 1)
        raise UserError(f"{twice} is asked for twice")
    entries = sweep.entries(options.presets, [varied])
    published = {} if options.presets else PUBLISHED
    if not options.presets:
        entries = [paper_entry(name) for name in options.rates]
    bench.run(
        bench.Table(
            "ASPP rates",
            entries,
            settings=lambda config, model: {"rates": bench.rates_column(config, model)},
            published={name: (row.before, row.after) for name, row in published.items()},
            source="Table 3 (VGG-16 from ImageNet)",
            starts={name: row.start for name, row in published.items()},
        ),
        options,
        common,
        output=options.output or Path("runs/sweep_aspp"),
    )


def paper_entry(name: str) -> bench.Entry:
    """The paper's row of this name, or its ASPP with these rates."""
    if name in PUBLISHED:
        return bench.Entry(name, PUBLISHED[name].preset, ())
    return bench.Entry(name, "table3_aspp_l", ("--model.aspp-rates", *rates_of(name)))


def rates_of(name: str) -> tuple[str, ...]:
    """The numbers, as words.

    Raises:
      UserError: neither a name nor numbers.
    """
    rates = RATES.get(name) or tuple(int(r) if r.isdigit() else 0 for r in name.split(","))
    if min(rates) < 1:
        raise UserError(f"--rates {name} is none of {', '.join(RATES)}, nor rates such as 3,6,9")
    return tuple(map(str, rates))


if __name__ == "__main__":
    cli.run(partial(main, common=common), given)
