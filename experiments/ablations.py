"""The paper's other ablations on any data: field of view, learning rate, the ResNet ladders.

    python experiments/ablations.py field_of_view --root data/voc -- --weights vgg16.pth
    python experiments/ablations.py learning_rate --root data/voc --shorten 20
    python experiments/ablations.py resnet --root camvid --preset small --shorten 8 --seeds 0 1
    python experiments/ablations.py cityscapes --root data/cityscapes -- --weights resnet101.pth

Tables 1, 2, 4, 6 (context), 7 (person_part) and 9 (cityscapes). Without --preset the rows of Tables
1, 2 and 4 are the paper's presets; with it they are changes of that preset. Runs, resuming and
output are as in sweep_aspp.py. The rows that start from MS-COCO need --coco-weights, those of
VGG-16 in Tables 6 and 9 --vgg-weights; they are left out without. The paper's numbers stand beside
ours where data, start and updates are the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import cli
import sweep_options
import tyro


@dataclass(frozen=True)
class Options(sweep_options.Options):
    table: Annotated[
        Literal["field_of_view", "learning_rate", "resnet", "context", "person_part", "cityscapes"],
        tyro.conf.Positional,
    ] = "field_of_view"
    """The ablation: Table 1, 2, 4, 6, 7 or 9."""
    preset: str | None = None
    """Network and recipe that the rows change; the paper's presets where none is given."""
    shorten: int = 1
    """Divide all numbers of updates, and the step policy's period, by this."""
    coco_weights: Path | None = None
    """Weights pretrained on MS-COCO, for the rows that start from them."""
    vgg_weights: str | None = None
    """ImageNet's weights of VGG-16, a file or a name, for its rows among those of ResNet-101."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    common = cli.split_arguments()
    given = cli.parse(Options, __doc__)

import bench

from deeplab_jax import paper, presets, receptive_field
from deeplab_jax.config import Config
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import UserError


def main(options: Options, common: tuple[str, ...]) -> None:
    cli.check_positive(shorten=options.shorten)
    preset = presets.RENAMED.get(options.preset, options.preset)
    output = options.output or Path("runs") / f"ablation_{options.table}"
    bench.run(TABLES[options.table](preset, options), options, common, output=output)


def field_of_view(preset: str | None, options: Options) -> bench.Table:
    """Kernel and rate of the first layer of the head; fc6 and fc7 are 4096 wide but in LargeFOV."""

    def settings(config: Config, model: DeepLabV2) -> dict[str, str]:
        reach = 8 * (model.head.kernel_size - 1) * max(model.head.rates)
        return {
            "kernel": f"{model.head.kernel_size}",
            "rate": bench.rates_column(config, model),
            "field of view (pixels)": f"{receptive_field.as_in_table_1(model)}",
            "head spans (pixels)": f"{reach + 8}",
            "receptive field (pixels)": f"{receptive_field.theoretical(model)}",
        }

    title, source = "Field of view", "Table 1 (VGG-16 from ImageNet, step policy)"
    if preset is None:
        return of_paper("1", title, settings, source, options)
    wide = ("--model.head-width", "4096")
    entries = [
        bench.Entry(
            f"{kernel}x{kernel} rate {rate}",
            preset,
            (*head(kernel, (rate,)), *(wide if kernel > 3 else ()), *updates(preset, options)),
        )
        for kernel, rate in ((7, 4), (4, 4), (4, 8), (3, 12))
    ]
    return bench.Table(title, entries, settings=settings, published={}, source=source)


def learning_rate(preset: str | None, options: Options) -> bench.Table:
    """Policy, photographs an update and number of updates."""

    def settings(config: Config, model: DeepLabV2) -> dict[str, str]:
        return {
            "policy": config.optim.policy,
            "photographs an update": f"{config.batch_size}",
            "updates": f"{config.num_steps}",
        }

    title = "Learning rate policy"
    source = "Table 2 (VGG-16 LargeFOV from ImageNet, before the CRF)"
    if preset is None:
        return of_paper("2", title, settings, source, options)
    rows = [presets.PRESETS[row.preset] for row in paper.rows("2")]
    entries = [
        bench.Entry(
            f"{row.optim.policy}, {row.batch_size}, {row.num_steps // options.shorten}",
            preset,
            (
                *("--optim.policy", row.optim.policy, "--batch-size", str(row.batch_size)),
                *updates(preset, options, row.num_steps),
            ),
        )
        for row in rows
    ]
    return bench.Table(title, entries, settings=settings, published={}, source=source)


def of_paper(
    number: str, title: str, settings: bench.Settings, source: str, options: Options
) -> bench.Table:
    """The rows of a table by their presets; those from MS-COCO only where its weights are given."""
    rows = [row for row in paper.rows(number) if row.start == "ImageNet" or options.coco_weights]

    def arguments(row: paper.Row) -> tuple[str, ...]:
        coco = ("--weights", str(options.coco_weights)) if row.start == "COCO" else ()
        return (*coco, *updates(row.preset, options))

    return bench.Table(
        title,
        [bench.Entry(row.label, row.preset, arguments(row)) for row in rows],
        settings=settings,
        published={row.label: (row.before, row.after) for row in rows},
        source=source,
        starts={row.label: row.start for row in rows},
    )


def resnet(preset: str | None, options: Options) -> bench.Table:
    """Table 4: each row adds one thing to the row above, LargeFOV and ASPP by turns."""
    source = "Table 4 (ResNet-101 from ImageNet, rows with COCO from MS-COCO)"
    if preset is None:
        return of_paper("4", "ResNet", ladder_settings, source, options)
    names = ("", "MSC", "MSC, COCO", "MSC, COCO, Aug")
    names = (*names, "MSC, COCO, Aug, LargeFOV", "MSC, COCO, Aug, ASPP")
    return ladder("ResNet", preset, dict.fromkeys(names), source, options)


def context(preset: str | None, options: Options) -> bench.Table:
    """Table 6."""
    return ladder(
        "PASCAL-Context",
        preset or "context",
        paper.CONTEXT,
        "Table 6 (its columns are read from the text)",
        options,
        photographs=(4998, 5105),
        num_classes=60,
        data="train to val of PASCAL-Context",
    )


def person_part(preset: str | None, options: Options) -> bench.Table:
    """Table 7."""
    return ladder(
        "PASCAL-Person-Part",
        preset or "person_part",
        paper.PERSON_PART,
        "Table 7 (ResNet-101; its columns are read from the text)",
        options,
        photographs=(1716, 1817),
        num_classes=7,
        data="train to val of PASCAL-Person-Part",
    )


def cityscapes(preset: str | None, options: Options) -> bench.Table:
    """Table 9. Rows at half resolution are trained and scored on photographs of half the size."""
    return ladder(
        "Cityscapes",
        preset or "cityscapes",
        paper.CITYSCAPES,
        "Table 9 (its columns are read from the text)",
        options,
        photographs=(2975, 500),
        num_classes=19,
        data="train to val of Cityscapes",
    )


VGG_ROWS = {
    "VGG-16 LargeFOV": "{}_vgg16_large_fov",
    "VGG-16 LargeFOV, half resolution": "{}_vgg16_large_fov_half",
}
"""Presets of the rows of VGG-16, by the preset of the data set."""


def ladder(
    title: str,
    preset: str,
    rows: Mapping[str, tuple[float | None, float | None] | None],
    source: str,
    options: Options,
    **data,
) -> bench.Table:
    """Rows that are named by what they add to ResNet-101: MSC, COCO, Aug, LargeFOV, ASPP.

    `rows` has the paper's numbers, None where there are none to show. Rows with COCO need its
    weights; without them Aug, LargeFOV and ASPP start from the weights of the other rows, and the
    paper's numbers are left out. Rows of VGG-16 are the presets of VGG_ROWS.
    """
    if preset not in presets.PRESETS:
        raise UserError(f"there is no preset {preset}; choose from {', '.join(presets.PRESETS)}")
    recipe = presets.PRESETS[preset]
    scales = recipe.data.augmentation_scales
    if len(scales) == 1:  # a preset that does not scale
        scales = Config().data.augmentation_scales
    entries, published, starts = [], {}, {}
    for name, numbers in rows.items():
        if name in VGG_ROWS:
            if options.vgg_weights is not None and options.preset is None:
                row = VGG_ROWS[name].format(preset)
                own = ("--weights", options.vgg_weights, *updates(row, options))
                entries.append(bench.Entry(name, row, own))
                published[name], starts[name] = numbers, "ImageNet"
            continue
        parts = [part for part in name.split(", ") if part]
        if "COCO" in parts and options.coco_weights is None:
            parts.remove("COCO")
            numbers = None
        label = ", ".join(parts) or "plain"
        if label in [entry.label for entry in entries]:
            continue
        kernel = (3, (12,)) if "LargeFOV" in parts else (3, (6, 12, 18, 24))
        kernel = kernel if {"LargeFOV", "ASPP"} & set(parts) else (1, (1,))
        arguments = (
            *(("--weights", str(options.coco_weights)) if "COCO" in parts else ()),
            *("--model.scales", "1.0", *(("0.75", "0.5") if "MSC" in parts else ())),
            *("--data.augmentation-scales", *map(str, scales if "Aug" in parts else (1.0,))),
            *head(*kernel),
            *updates(preset, options),
        )
        entries.append(bench.Entry(label, preset, arguments))
        if numbers is not None:
            published[label] = numbers
            starts[label] = "COCO" if "COCO" in parts else "ImageNet"
    return bench.Table(
        title,
        entries,
        settings=ladder_settings,
        published=published,
        source=source,
        starts=starts,
        **data,
    )


def ladder_settings(config: Config, model: DeepLabV2) -> dict[str, str]:
    return {
        "network": {"resnet": "ResNet-101", "vgg": "VGG-16"}[config.model.backbone],
        "input scales": ", ".join(map(str, model.scales)),
        "augmentation": ", ".join(map(str, config.data.augmentation_scales)),
        "kernel": f"{model.head.kernel_size}",
        "rates": bench.rates_column(config, model),
        "from": config.weights.name if config.weights else "scratch",
    }


def head(kernel_size: int, rates: tuple[int, ...]) -> tuple[str, ...]:
    """The options of a head."""
    return (
        *("--model.head-kernel-size", str(kernel_size)),
        *("--model.aspp-rates", *map(str, rates)),
    )


def updates(preset: str, options: Options, steps: int | None = None) -> tuple[str, ...]:
    """The options for the length of a run: `steps`, or the preset's number, shortened."""
    recipe = presets.PRESETS.get(preset, Config())
    steps = steps or recipe.num_steps
    return (
        *("--num-steps", str(max(steps // options.shorten, 1))),
        *("--optim.step-every", str(max(recipe.optim.step_every // options.shorten, 1))),
    )


TABLES: dict[str, Callable[[str | None, Options], bench.Table]] = {
    "field_of_view": field_of_view,
    "learning_rate": learning_rate,
    "resnet": resnet,
    "context": context,
    "person_part": person_part,
    "cityscapes": cityscapes,
}


if __name__ == "__main__":
    cli.run(partial(main, common=common), given)
