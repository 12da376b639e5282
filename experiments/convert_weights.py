"""Convert published weights, or a work folder, to one safetensors file of ours.

    python experiments/convert_weights.py train_iter_20000.caffemodel voc.safetensors
    python experiments/convert_weights.py resnet101-63fe2227.pth imagenet.safetensors
    python experiments/convert_weights.py prototxt_and_model.zip/init.caffemodel coco.safetensors
    python experiments/convert_weights.py runs/small small.safetensors
    python experiments/convert_weights.py runs/small camvid --bundle --card.licence CC0

Read without Caffe or PyTorch: .caffemodel, .pth (zip and legacy), .safetensors and .npz with
PyTorch's names, one of these in a .zip, and our own. A ResNet-101 takes seconds.

--bundle puts the network into the package under the name DEST, with a card beside it.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import cli
import tyro

from deeplab_jax import segmenter, train
from deeplab_jax.choices import Alignment
from deeplab_jax.types import UserError
from deeplab_jax.weights import files, names, sources
from deeplab_jax.weights.shared import Card
from deeplab_jax.weights.sources import ReadAs


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, a weight file, or a name of published weights such as voc12."""
    dest: Annotated[Path, tyro.conf.Positional]
    """The safetensors file to write; with --bundle the network's name."""
    bundle: bool = False
    """Make the network part of the package, where it answers to its name wherever weights do."""
    card: Card = Card()
    """What is told of a network that is bundled."""
    num_classes: int | None = None
    """Refuse a last layer with another number of classes."""
    fresh_head: bool = False
    """Leave the last layer out, so that training starts it from scratch."""
    aspp_rates: tuple[int, ...] | None = None
    """Rates of the head where the file does not say them (6 12 18 24, or 12 for one branch).
    VGG of ImageNet is thinned to a head with these."""
    head_kernel_size: int = 3
    """Kernel of fc6 that VGG of ImageNet is thinned to."""
    head_width: int = 1024
    """Features of fc6 and fc7 that VGG of ImageNet is thinned to."""
    branches: tuple[int, ...] | None = None
    """Branches of the head to keep, counted from 0, where the port that trained the weights sums
    only these: 0 1 for AdaptSegNet, AdvSemiSeg and speedinghzl before October 2017."""
    read_as: ReadAs | None = None
    """How a ResNet or VGG with torchvision's names was trained, where the file does not show it:
    torchvision (RGB in 0..1, standardised; strides in the 3x3) or caffe (BGR in 0..255 less a mean
    pixel; strides in the first 1x1)."""
    scales: tuple[float, ...] | None = None
    """Scales of the input whose scores are fused, where the file does not say them."""
    alignment: Alignment | None = None
    """Resizing the weights were trained with, where the format's usual one is wrong."""


def main(options: Options) -> None:
    if not options.bundle:
        files.check_place(options.dest, source=options.source)
    flat, header = read(options)
    classes = len(header["class_names"])
    if options.num_classes not in (None, classes) and classes and not options.fresh_head:
        raise UserError(
            f"{options.source} has {classes} classes and --num-classes asks for "
            f"{options.num_classes}; give --fresh-head to leave its last layer out"
        )
    if options.fresh_head:
        flat = files.without_last_layer(flat)
        header["class_names"] = ()
    network = segmenter.network(header["model"], max(len(header["class_names"]), 1))
    shapes = train.variable_shapes(network)
    files.check(shapes, flat, fresh_head=not header["class_names"])
    dest = options.dest
    if options.bundle:
        dest = names.bundle(str(dest), flat, header, options.card)
    else:
        files.write(dest, {"": flat}, header)
    print(summary(dest, header))


def read(options: Options) -> tuple[files.Flat, files.Header]:
    """Arrays and header of the source, with the fields that options settle."""
    given = {field.name: getattr(options, field.name) for field in fields(sources.Answers)}
    flat, header = segmenter.read_weights(options.source, answers=sources.Answers(**given))
    model, asked = header["model"], options.aspp_rates
    rates = tuple(model.get("aspp_rates", ()))
    if asked is not None and options.branches is not None:
        asked = tuple(rate for i, rate in enumerate(asked) if i in options.branches)
    if asked not in (None, rates):
        found = f"a head with the rates {rates}" if rates else "no head"
        raise UserError(
            f"{options.source} has {found}, and --aspp-rates asks for {options.aspp_rates}; leave "
            "that option out"
        )
    model |= {n: v for n in ("alignment", "scales") if (v := getattr(options, n))}
    return flat, header


def summary(dest: Path, header: files.Header) -> str:
    lines = [f"{dest} is written", f"network  {header['model']}"]
    names = header["class_names"]
    lines.append(f"classes  {len(names) or 'none: training starts the last layer from scratch'}")
    for reason, skipped in header.get("skipped", {}).items():
        lines.append(f"skipped  {len(skipped)} arrays, e.g. {skipped[0]}: {reason}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
