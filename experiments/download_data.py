"""Download the archives of a freely available data set, and verify them.

    python experiments/download_data.py voc_aug data/voc
    python experiments/train_voc.py table3_aspp_l --data.root data/voc --weights imagenet-vgg16

voc: VOC 2012, 2 GB; voc_aug: with SBD, 3.3 GB; voc_test: its photographs without masks, 1.9 GB;
coco: COCO 2017, 20 GB. Of the others it tells where to get them by hand. A download that broke
off goes on when the command is typed again; archives need not be unpacked.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cli
import tyro

from deeplab_jax.data import downloads


@dataclass(frozen=True)
class Options:
    name: Annotated[str, tyro.conf.Positional]
    """voc, voc_aug, voc_test or coco."""
    root: Annotated[Path, tyro.conf.Positional]
    """Folder for the archives, to be given as --data.root."""


def main(options: Options) -> None:
    for path in downloads.fetch_data_set(options.name, options.root):
        print(f"{path}: verified")


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
