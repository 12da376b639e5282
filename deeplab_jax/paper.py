"""The paper's tables: its numbers, the preset of each row, and what of a row no source says.

Mean IoU is in percent, on val; that of Tables 5 and 8 comes from test servers.
"""

from dataclasses import dataclass

from deeplab_jax.choices import Server

GUESSES = {
    "thinned": "fc6 and fc7 keep every fourth feature; the paper's random quarter is published in "
    "vgg16_20M.caffemodel alone",
    "branches": "all branches start from the same fc6 and fc7; whether the paper's do is not told",
    "taps": "which taps of VGG-16's fc6 are kept is not told",
    "pools": "pools, crop and their alignment are those of the released 4x4 network: the text says "
    "only that the batch is 20",
    "pool5a": "the average pool after pool5 is in the first release; the paper does not say",
    "no-pool5a": "no average pool after pool5, as ASPP-L has none",
    "solver": "rate, updates, batch and crop are those of the release's solver; the paper names "
    "none for this table",
    "plain": "a 1x1 convolution is the natural reading of neither LargeFOV nor ASPP",
    "large-fov": "LargeFOV is one 3x3 convolution at rate 12 to the classes",
    "columns": "what a row has is read from the text; the table's check marks are not at hand",
    "aug": "whether photographs are scaled in training is not told: they are",
    "no-aug": "whether photographs are scaled in training is not told: they are not",
    "crops": "crops of 513 pixels, and tiles of 513 that share a quarter: the paper has no sizes",
    "half": "the paper's data are the pre-release of Cityscapes, at half resolution",
    "coarse": "fine and coarse masks count alike; the paper's 64.8 is by weak supervision",
}
"""What no source says, or what is ours, by the words that stand in the table below."""

_OF_ALL = {
    **dict.fromkeys("67", "solver columns"),
    "8": "solver crops",
    "9": "solver columns crops",
}
"""Those of all rows of a table."""

# Table | row | preset | the weights to start from | before and after the CRF | other guesses
_TABLE = """
1 | 7x7, rate 4                    | table1_7x7          | ImageNet | 64.38 | 67.64 | pools
1 | 4x4, rate 4                    | table1_4x4          | ImageNet | 59.80 | 63.74 | taps
1 | 4x4, rate 8                    | table1_4x4_r8       | ImageNet | 63.41 | 67.14 | pools taps
1 | LargeFOV: 3x3, rate 12         | table1_large_fov    | ImageNet | 62.25 | 67.64 | thinned
2 | step, batch 30, 6K             | table2_step_30_6k   | ImageNet | 62.25 |       | thinned
2 | poly, batch 30, 6K             | table2_poly_30_6k   | ImageNet | 63.42 |       | thinned pool5a
2 | poly, batch 30, 10K            | table2_poly_30_10k  | ImageNet | 64.90 |       | thinned pool5a
2 | poly, batch 10, 10K            | table2_poly_10_10k  | ImageNet | 64.71 |       | thinned pool5a
2 | poly, batch 10, 20K            | table2_poly_10_20k  | ImageNet | 65.88 |       | thinned pool5a
3 | LargeFOV                       | table3_large_fov    | ImageNet | 65.76 | 69.84 | thinned pool5a
3 | ASPP-S | table3_aspp_s | ImageNet | 66.98 | 69.73 | thinned branches no-pool5a
3 | ASPP-L | table3_aspp_l | ImageNet | 68.96 | 71.57 | thinned branches
4 | ResNet-101                     | table4_plain        | ImageNet | 68.72 |       | solver plain
4 | MSC                            | table4_msc          | ImageNet | 71.27 |       | solver plain
4 | MSC, COCO                      | table4_msc_coco     | COCO     | 73.28 |       | solver plain
4 | MSC, COCO, Aug                 | table4_msc_coco_aug | COCO     | 74.87 |       | solver plain
4 | MSC, COCO, Aug, LargeFOV | table4_msc_coco_aug_large_fov | COCO | 75.54 |  | solver large-fov
4 | MSC, COCO, Aug, ASPP           | table4_msc_coco_aug_aspp | COCO     | 76.35 | 77.69 |
5 | VGG-16, LargeFOV, step         | test_large_fov_step | ImageNet | 65.1  | 70.3  | thinned
5 | VGG-16, LargeFOV, poly         | test_large_fov_poly | ImageNet | 67.7  |       | thinned pool5a
5 | VGG-16, ASPP-L | test_vgg16 | ImageNet |  | 72.6 | thinned branches
5 | ResNet-101, MSC, COCO, Aug, ASPP | test_resnet101      | COCO     |       | 79.7  |
6 | VGG-16, LargeFOV               | table3_large_fov    | ImageNet | 37.6  | 39.6  | thinned pool5a
6 | ResNet-101                     | table4_plain        | ImageNet | 39.6  |       | plain
6 | MSC                            | table4_msc          | ImageNet | 41.4  |       | plain
6 | MSC, COCO                      | table4_msc_coco     | COCO     | 42.9  |       | plain no-aug
6 | MSC, COCO, LargeFOV | table4_msc_coco_aug_large_fov | COCO | 43.5 |  | aug large-fov
6 | MSC, COCO, ASPP                | table4_msc_coco_aug_aspp | COCO     | 44.7  | 45.7  | aug
7 | ResNet-101                     | table4_plain        | ImageNet | 58.90 |       | plain
7 | MSC                            | table4_msc          | ImageNet | 63.10 |       | plain
7 | MSC, COCO                      | table4_msc_coco     | COCO     | 64.40 | 64.94 | plain no-aug
7 | MSC, COCO, LargeFOV | table7_msc_coco_large_fov | COCO | 62.18 |  | no-aug large-fov
7 | MSC, COCO, ASPP                | table7_msc_coco_aspp | COCO     | 62.76 |       | no-aug
8 | VGG-16, LargeFOV, pre-release | table9_vgg16_half | ImageNet |  | 63.1 | thinned pool5a half
8 | the same, coarse masks too | test_city_coarse | ImageNet |  | 64.8 | thinned pool5a half coarse
8 | ResNet-101, Aug, ASPP          | table9_aspp_aug     | ImageNet |       | 70.4  |
9 | VGG-16, LargeFOV, half size    | table9_vgg16_half   | ImageNet | 62.97 | 64.18 | thinned pool5a
9 | VGG-16, LargeFOV               | table9_vgg16        | ImageNet | 64.89 | 65.94 | thinned pool5a
9 | ResNet-101                     | table9_plain        | ImageNet | 66.6  |       | plain
9 | ResNet-101, LargeFOV           | table9_large_fov    | ImageNet | 69.2  |       | large-fov
9 | ResNet-101, ASPP               | table9_aspp         | ImageNet | 70.4  |       |
9 | ResNet-101, ASPP, Aug          | table9_aspp_aug     | ImageNet | 71.0  | 71.4  |
"""


@dataclass(frozen=True)
class Row:
    """A row of a table, which a preset trains."""

    table: str
    label: str
    preset: str
    start: str
    """What the weights to start from were trained on: ImageNet, or COCO, which began there too."""
    before: float | None
    """Mean IoU before the CRF; None where the paper has none."""
    after: float | None
    """Mean IoU after the CRF."""
    guesses: tuple[str, ...]
    """What no source says; without any the row follows the release."""

    @property
    def server(self) -> Server | None:
        """The test server that the numbers come from."""
        return _SERVERS.get(self.table)

    @property
    def scores(self) -> str:
        """The numbers in words."""
        scores = ((self.before, "before the CRF"), (self.after, "after the CRF"))
        return " and ".join(f"{score:g} {when}" for score, when in scores if score is not None)


_SERVERS: dict[str, Server] = {"5": "voc", "8": "cityscapes"}


def _read(line: str) -> Row:
    table, label, preset, start, before, after, words = map(str.strip, line.split("|"))
    words = f"{_OF_ALL.get(table, '')} {words}"
    guesses = tuple(GUESSES[word] for word in words.split())
    scores = (float(before) if before else None, float(after) if after else None)
    return Row(table, label, preset, start, *scores, guesses)


ROWS = tuple(map(_read, _TABLE.strip().splitlines()))
"""Tables 1 to 9. A row after the CRF and the same before it are one."""


def rows(table: str) -> tuple[Row, ...]:
    """The rows of a table, in its order.

    >>> [row.before for row in rows("3")]
    [65.76, 66.98, 68.96]
    """
    return tuple(row for row in ROWS if row.table == table)


@dataclass(frozen=True)
class Data:
    """What the rows of a table are trained and scored on."""

    name: str
    photographs: tuple[int, int]
    """Numbers of them in the splits for training and for scoring."""
    num_classes: int
    folder: str
    """Name of a folder for the runs."""


_VOC = Data("PASCAL VOC 2012 with SBD, trainaug to val", (10_582, 1449), 21, "paper_voc2012")
_CITYSCAPES = Data("Cityscapes, train to val", (2975, 500), 19, "paper_cityscapes")
DATA = {
    **dict.fromkeys("12345", _VOC),
    "6": Data("PASCAL-Context, train to val", (4998, 5105), 60, "paper_context"),
    "7": Data("PASCAL-Person-Part, train to val", (1716, 1817), 7, "paper_person_part"),
    **dict.fromkeys("89", _CITYSCAPES),
}
