"""The paper's other ablations on any data: field of view, learning rate, the ResNet ladder.

    python experiments/ablations.py field_of_view --root VOCdevkit -- --weights vgg16.pth
    python experiments/ablations.py learning_rate --root VOCdevkit --shorten 20
    python experiments/ablations.py resnet --root camvid --preset small --shorten 8 --seeds 0 1

Tables 1, 2 and 4. Runs, resuming and output are as in sweep_aspp.py. The rows that start from
MS-COCO need --coco-weights and are left out without. Expected: the paper's numbers, which stand
in the table where the data are the paper's; not yet run on them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import cli
import sweep_options
import tyro


@dataclass(frozen=True)
class Options(sweep_options.Options):
    table: Annotated[Literal["field_of_view", "learning_rate", "resnet"], tyro.conf.Positional] = (
        "field_of_view"
    )
    """Which one: Table 1, 2 or 4."""
    preset: str | None = None
    """Network and recipe that the rows change; the paper's where none is given."""
    shorten: int = 1
    """Divide all numbers of updates, and the step policy's period, by this."""
    coco_weights: Path | None = None
    """Of resnet: weights pretrained on MS-COCO, for its rows from the third on."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    common = cli.split_arguments()
    given = cli.parse(Options, __doc__)

import bench

from deeplab_jax import presets, receptive_field
from deeplab_jax.config import Config
from deeplab_jax.models.deeplab import DeepLabV2


def main(options: Options, common: tuple[str, ...]) -> None:
    cli.check_positive(shorten=options.shorten)
    preset, make = TABLES[options.table]
    table = make(options.preset or preset, options)
    if options.preset not in (None, preset):
        table = replace(table, published={})
    output = options.output or Path("runs") / f"ablation_{options.table}"
    bench.run(table, options, common, output=output)


def field_of_view(preset: str, options: Options) -> bench.Table:
    """Kernel and rate of the first layer of the head; fc6 and fc7 are 4096 wide but in LargeFOV."""
    rows = {(7, 4): (64.38, 67.64), (4, 4): (59.80, 63.74), (4, 8): (63.41, 67.14)}
    wide = ("--model.head-width", "4096")
    entries = [
        bench.Entry(
            f"{kernel}x{kernel} rate {rate}",
            preset,
            (*head(kernel, (rate,)), *(wide if kernel > 3 else ()), *updates(preset, options)),
        )
        for kernel, rate in (*rows, (3, 12))
    ]
    published = {f"{kernel}x{kernel} rate {rate}": row for (kernel, rate), row in rows.items()}

    def settings(config: Config, model: DeepLabV2) -> dict[str, str]:
        side = 8 * ((model.head.kernel_size - 1) * max(model.head.rates) + 1)
        return {
            "kernel": f"{model.head.kernel_size}",
            "rate": bench.rates_column(config, model),
            "head spans (pixels)": f"{side}",
            "receptive field (pixels)": f"{receptive_field.theoretical(model)}",
        }

    return bench.Table(
        "Field of view",
        entries,
        settings=settings,
        published={**published, "3x3 rate 12": (62.25, 67.64)},
        source="Table 1 (VGG-16 from ImageNet, step policy)",
    )


def learning_rate(preset: str, options: Options) -> bench.Table:
    """Policy, photographs an update and number of updates."""
    rows = {
        ("step", 30, 6000): 62.25,
        ("poly", 30, 6000): 63.42,
        ("poly", 30, 10_000): 64.90,
        ("poly", 10, 10_000): 64.71,
        ("poly", 10, 20_000): 65.88,
    }

    def label(policy: str, batch: int, steps: int) -> str:
        return f"{policy}, {batch}, {steps // options.shorten}"

    entries = [
        bench.Entry(
            label(policy, batch, steps),
            preset,
            (
                *("--optim.policy", policy, "--batch-size", str(batch)),
                *updates(preset, options, steps),
            ),
        )
        for policy, batch, steps in rows
    ]
    return bench.Table(
        "Learning rate policy",
        entries,
        settings=lambda config, _: {
            "policy": config.optim.policy,
            "photographs an update": f"{config.batch_size}",
            "updates": f"{config.num_steps}",
        },
        published={label(*row): (score, None) for row, score in rows.items()},
        source="Table 2 (VGG-16 LargeFOV from ImageNet, before the CRF)",
    )


def resnet(preset: str, options: Options) -> bench.Table:
    """The ladder: each row adds one thing to the row above; LargeFOV and ASPP take turns."""
    recipe = presets.PRESETS[preset] if preset in presets.PRESETS else Config()
    msc = ("--model.scales", "1.0", "0.75", "0.5")
    single = ("--model.scales", "1.0")
    plain, wide, aspp = head(1, (1,)), head(3, (12,)), head(3, (6, 12, 18, 24))
    scales = recipe.data.augmentation_scales
    if len(scales) == 1:  # a preset that does not scale
        scales = Config().data.augmentation_scales
    still, scaled = (
        ("--data.augmentation-scales", *map(str, values)) for values in ((1.0,), scales)
    )
    coco = ("--weights", str(options.coco_weights))
    ladder = [
        ("plain", (*single, *still, *plain), (68.72, None)),
        ("MSC", (*msc, *still, *plain), (71.27, None)),
        ("MSC, COCO", (*coco, *msc, *still, *plain), (73.28, None)),
        ("MSC, COCO, Aug", (*coco, *msc, *scaled, *plain), (74.87, None)),
        ("MSC, COCO, Aug, LargeFOV", (*coco, *msc, *scaled, *wide), (75.54, None)),
        ("MSC, COCO, Aug, ASPP", (*coco, *msc, *scaled, *aspp), (76.35, 77.69)),
    ]
    published = {label: scores for label, _, scores in ladder}
    if options.coco_weights is None:
        # The paper has no rows of its own for augmentation and heads without MS-COCO.
        published = {"plain": (68.72, None), "MSC": (71.27, None)}
        ladder = [
            (label.replace("COCO, ", ""), arguments[2:] if "COCO" in label else arguments, None)
            for label, arguments, _ in ladder
            if label != "MSC, COCO"
        ]
    entries = [
        bench.Entry(label, preset, (*arguments, *updates(preset, options)))
        for label, arguments, _ in ladder
    ]
    return bench.Table(
        "ResNet",
        entries,
        settings=lambda config, model: {
            "input scales": ", ".join(map(str, model.scales)),
            "augmentation": ", ".join(map(str, config.data.augmentation_scales)),
            "kernel": f"{model.head.kernel_size}",
            "rates": bench.rates_column(config, model),
            "from": config.weights.name if config.weights else "scratch",
        },
        published=published,
        source="Table 4 (ResNet-101 from ImageNet, rows with COCO from MS-COCO)",
    )


def head(kernel_size: int, rates: tuple[int, ...]) -> tuple[str, ...]:
    """The options of a head."""
    return (
        *("--model.head-kernel-size", str(kernel_size)),
        *("--model.aspp-rates", *map(str, rates)),
    )


def updates(preset: str, options: Options, steps: int | None = None) -> tuple[str, ...]:
    """The options of a run's length: `steps`, or what the preset says, shortened."""
    recipe = presets.PRESETS.get(preset, Config())
    steps = steps or recipe.num_steps
    return (
        *("--num-steps", str(max(steps // options.shorten, 1))),
        *("--optim.step-every", str(max(recipe.optim.step_every // options.shorten, 1))),
    )


TABLES: dict[str, tuple[str, Callable[[str, Options], bench.Table]]] = {
    "field_of_view": ("vgg16_large_fov_step", field_of_view),
    "learning_rate": ("vgg16_large_fov", learning_rate),
    "resnet": ("resnet101_aspp_msc", resnet),
}


if __name__ == "__main__":
    cli.run(partial(main, common=common), given)
