"""How far the scores of trained networks look: theoretical and effective receptive field.

    python experiments/field_of_view.py runs/sweep_aspp/*_seed0

One panel a run: the mean gradient of the middle score of the winning class with respect to the
pixels of a few photographs of the val split, the square outside of which no pixel can matter, and
the one that holds 90% of the gradient. Seconds for small networks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cli
import numpy as np
import splits
import tyro

from deeplab_jax import figures, receptive_field, runs
from deeplab_jax.types import Image, UserError


@dataclass(frozen=True)
class Options:
    workdirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Work folders of runs on one data set."""
    num_photographs: int = 8
    """Photographs averaged, evenly spread over the val split."""
    side: int = 321
    """Side of the middle that is cut out of photographs, 16k + 1 pixels."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    output: Path | None = None
    """Picture; field_of_view.png in the work folder of a single run, else in this folder."""


def main(options: Options) -> None:
    if options.side % 16 != 1:
        near = options.side // 16 * 16 + 1
        raise UserError(f"--side {options.side} must be a multiple of 16 plus 1, such as {near}")
    images = some_photographs(options)
    fields = {}
    for workdir in options.workdirs:
        model, variables, _ = runs.load(workdir)
        single = model.clone(scales=(1.0,))
        field = receptive_field.effective(single, variables, images, side=options.side)
        sides = receptive_field.theoretical(single), receptive_field.side_holding(0.9, field)
        label = f"{workdir.name}: rates {', '.join(map(str, model.aspp_rates))}"
        fields[label] = (field, *sides)
        print(f"{label}: theoretical {sides[0]} pixels, 90% of the gradient in {sides[1]}")
    output = options.output or (
        options.workdirs[0] / "field_of_view.png" if len(fields) == 1 else Path("field_of_view.png")
    )
    figures.save(figures.field_of_view(fields), output)
    print(f"written to {output}")


def some_photographs(options: Options) -> list[Image]:
    """Of the first run's val split."""
    config, _ = runs.read_config(options.workdirs[0])
    source = splits.open_val(config, prepared_dir=options.prepared_dir)
    numbers = np.unique(np.linspace(0, len(source) - 1, options.num_photographs).astype(int))
    return [source[number]["image"] for number in numbers.tolist()]


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
