"""Train with several sets of ASPP rates, seeds and networks: the paper's Table 3, on any data.

    python experiments/sweep_aspp.py --root camvid --presets small --seeds 0 1 -- --num-steps 400
    python experiments/sweep_aspp.py --root data/voc --vgg VGG_ILSVRC_16_layers.caffemodel
    python experiments/sweep_aspp.py --presets quickstart --rates ASPP-S "1 2 3 4" --seeds 0

The page of sweep.py for one option: runs, resuming and what is left are as told there. Without
--presets the rows are the paper's presets of Table 3. Numbers: experiments/results/README.md.
"""

from dataclasses import dataclass

import cli
import sweep
import tyro

from deeplab_jax import paper

RATES = {"LargeFOV": "12", "ASPP-S": "2 4 8 12", "ASPP-L": "6 12 18 24"}
"""The sets of Section 4.1.2."""


@dataclass(frozen=True)
class Options(sweep.Options):
    table: tyro.conf.Suppress[None] = None
    vary: tyro.conf.Suppress[tuple[()]] = ()
    rates: tuple[str, ...] = tuple(RATES)
    """LargeFOV, ASPP-S, ASPP-L, or rates in quotes, such as "3 6 9"."""


def main(options: Options) -> None:
    entries = [
        entry_of(preset, name) for preset in options.presets or (None,) for name in options.rates
    ]
    sweep.run(options, entries, "sweep_aspp")


def entry_of(preset: str | None, name: str) -> sweep.Entry:
    """A row with these rates: a preset with other rates, or the paper's row of this name."""
    row = next((row for row in paper.rows("3") if row.label == name), None)
    if preset is None and row is not None:
        return sweep.Entry(name, row.preset, (), row)
    rates = ("--model.aspp-rates", *RATES.get(name, name).split())
    return sweep.Entry(f"{preset or ''} {name}".strip(), preset or "table3_aspp_l", rates)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
