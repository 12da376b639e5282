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

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cli
import tyro

from deeplab_jax import segmenter, train
from deeplab_jax.choices import Alignment
from deeplab_jax.types import UserError
from deeplab_jax.weights import files, names, sources
from deeplab_jax.weights.shared import Card


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
    answers: tyro.conf.OmitArgPrefixes[sources.Answers] = sources.NO_ANSWERS
    alignment: Alignment | None = None
    """Resizing the weights were trained with, where the format's usual one is wrong."""


def main(options: Options) -> None:
    if not options.bundle:
        files.check_place(options.dest, source=options.source)
    flat, header = read(options)
    classes = len(header["class_names"])
    fresh_head = options.answers.fresh_head
    if options.num_classes not in (None, classes) and classes and not fresh_head:
        raise UserError(
            f"{options.source} has {classes} classes and --num-classes asks for "
            f"{options.num_classes}; give --fresh-head to leave its last layer out"
        )
    if fresh_head:
        flat = files.without_last_layer(flat)
        header["class_names"] = ()
    classes = len(header["class_names"])
    network = segmenter.network(header["model"], max(classes, 1))
    files.check(train.variable_shapes(network), flat, fresh_head=not classes)
    dest = options.dest
    if options.bundle:
        dest = names.bundle(str(dest), flat, header, options.card)
    else:
        files.write(dest, {"": flat}, header)
    print(f"{dest} is written\nnetwork  {header['model']}")
    print(f"classes  {classes or 'none: training starts the last layer from scratch'}")
    for reason, skipped in header.get("skipped", {}).items():
        print(f"skipped  {len(skipped)} arrays, e.g. {skipped[0]}: {reason}")


def read(options: Options) -> tuple[files.Flat, files.Header]:
    """Arrays and header of the source, with the fields that options settle."""
    answers = options.answers
    flat, header = segmenter.read_weights(options.source, answers=answers)
    model, asked = header["model"], answers.aspp_rates
    rates = tuple(model.get("aspp_rates", ()))
    if asked is not None and answers.branches is not None:
        asked = tuple(rate for i, rate in enumerate(asked) if i in answers.branches)
    if asked not in (None, rates):
        found = f"a head with the rates {rates}" if rates else "no head"
        raise UserError(
            f"{options.source} has {found}, and --aspp-rates asks for {answers.aspp_rates}; leave "
            "that option out"
        )
    given = {"alignment": options.alignment, "scales": answers.scales}
    model |= {name: value for name, value in given.items() if value}
    return flat, header


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
