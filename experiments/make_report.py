"""Look at what a run gets wrong: worst photographs, CRF before and after, all in report.html.

    python experiments/make_report.py runs/small
    python experiments/make_report.py runs/small --crf --num-photographs 8

Runs the network over the val split once more and leaves confusion.png, classes.png, failures.png
and, with --crf, crf.png and score_after_crf.json beside the pictures of the training, then
report.html with all of them. CamVid's 101 photographs take about 10 s on two CPU cores, and a
minute with --crf.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cli
import numpy as np
import tyro
from PIL import Image as PILImage

from deeplab_jax import evaluation, figures, metrics, report, segmenter, visualization
from deeplab_jax import workdir as workdirs
from deeplab_jax.types import LabelMap


@dataclass(frozen=True)
class Options(cli.NetworkOptions):
    workdir: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run."""
    num_photographs: int = 6
    """Photographs on the sheet of failures, and on that of the CRF."""


ALIKE = 12.0
"""Largest mean difference, out of 255, of the thumbnails of photographs that look alike."""


@dataclass(frozen=True)
class Seen:
    """A photograph of the split with its predictions."""

    item: dict
    maps: list[LabelMap]
    """The network's labels and, with the CRF, those after it."""
    tallies: list[metrics.Tally]
    thumbnail: np.ndarray
    """The photograph at 16x16 pixels."""

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the last map; infinite where the photograph has no labels."""
        value = metrics.mean_iou(self.tallies[-1].confusion)
        return np.inf if np.isnan(value) else value

    @property
    def caption(self) -> str:
        scores = [f"{metrics.mean_iou(tally.confusion):.3f}" for tally in self.tallies]
        text = f"{self.item['name']}: mean IoU {scores[0]}"
        if len(scores) == 1:
            return text
        return f"{text}, {scores[1]} after the CRF, which changed {self.changed:.1%} of the pixels"

    def row(self, bands: Sequence[int] | None) -> tuple[np.ndarray, ...]:
        """The photograph, the truth, the maps, and where the last of them is wrong."""
        image = visualization.show_bands(self.item["image"], bands)
        truth = self.item["labels"]
        return image, truth, *self.maps, visualization.error_map(image, self.maps[-1], truth)

    @property
    def changed(self) -> float:
        """Share of pixels that the CRF gave another class."""
        return float((self.maps[0] != self.maps[-1]).mean())


def main(options: Options) -> None:
    cli.check_positive(num_photographs=options.num_photographs)
    found, config = options.load(options.workdir)
    class_names, num_classes = found.class_names, found.model.num_classes
    val = options.open_split(config, config.data.val_split, class_names)
    how = options.refine(found, config), options.inference(config)
    bar = partial(cli.progress, what="predicted")
    predictions = evaluation.each_prediction(*found[:2], val, *how, progress=bar)
    worst, changed = [], []
    totals = [metrics.empty_tally(num_classes)] * (2 if options.crf else 1)
    for item, maps in predictions:
        tallies = [metrics.tally(item["labels"], m, num_classes=num_classes) for m in maps]
        totals = [metrics.add(a, b) for a, b in zip(totals, tallies, strict=True)]
        photograph = PILImage.fromarray(visualization.show_bands(item["image"]))
        thumbnail = photograph.resize((16, 16), PILImage.Resampling.BOX)
        seen = Seen(item, maps, tallies, np.asarray(thumbnail, float))
        if np.isfinite(seen.mean_iou):
            worst = first_unlike([*worst, seen], lambda s: s.mean_iou, options.num_photographs)
        # Twice as many, since those among the worst are not shown again.
        changed = first_unlike([*changed, seen], lambda s: -s.changed, 2 * options.num_photographs)
    names = {seen.item["name"] for seen in worst}
    changed = [s for s in changed if s.item["name"] not in names][: options.num_photographs]
    if options.crf:
        refined = metrics.report(totals[-1], class_names)
        workdirs.write_score(options.workdir / report.REFINED, refined)
    sheets = {"failures.png": worst, **({"crf.png": changed} if options.crf else {})}
    draw(options.workdir, found, segmenter.shown_bands(config), totals, sheets)
    print(f"{report.write(options.workdir)} shows what the run gets right and wrong")


def first_unlike(seen: list[Seen], key: Callable[[Seen], float], number: int) -> list[Seen]:
    """The first `number` by the key, without those that look like an earlier one (video frames)."""
    chosen: list[Seen] = []
    for one in sorted(seen, key=key):
        if all(np.abs(one.thumbnail - other.thumbnail).mean() > ALIKE for other in chosen):
            chosen.append(one)
    return chosen[:number]


def draw(
    folder: Path,
    found: segmenter.Segmenter,
    bands: tuple[int, ...] | None,
    totals: list[metrics.Tally],
    sheets: dict[str, list[Seen]],
) -> None:
    """The pictures that need the network's predictions; photographs are shown by their `bands`."""
    names, kinds = found.class_names, ("network", "after CRF")[: len(totals)]
    bars = {kind: metrics.iou(t.confusion) for kind, t in zip(kinds, totals, strict=True)}
    figures.save(figures.class_bars(bars, names), folder / "classes.png")
    matrix = figures.confusion(totals[-1].confusion, names, source=kinds[-1])
    figures.save(matrix, folder / "confusion.png")
    photograph = visualization.title_of_bands(found.model.num_channels, bands)
    for name, chosen in sheets.items():
        if not chosen:
            (folder / name).unlink(missing_ok=True)
            continue
        picture = visualization.sheet(
            [s.row(bands) for s in chosen],
            names,
            titles=(photograph, "truth", *kinds, "wrong pixels"),
            captions=[s.caption for s in chosen],
            colors=visualization.palette(names, found.meta.get("class_colors")),
        )
        PILImage.fromarray(picture).save(folder / name)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
