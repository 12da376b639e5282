"""The paper's tables: its numbers, the preset of each row, and what of a row no source says.

Mean IoU is in percent. PASCAL VOC 2012 is trained on train_aug (10,582 photographs) and scored on
val (1,449) unless a row says otherwise.
"""

from dataclasses import dataclass
from typing import Literal

Start = Literal["ImageNet", "COCO"]

DROPPED_POOLS = (
    "pools, crop and their alignment are those of the released 4x4 network: the text says only "
    "that the batch is 20"
)
POOL5A = "the average pool after pool5 is in the first release; the paper does not say"
NO_RATE = "the rate of the first update stands in the release's solvers, not in the paper"
PLAIN = "a 1x1 convolution is the natural reading of neither LargeFOV nor ASPP"
TAPS = "which taps of VGG-16's fc6 are kept is not told"
THINNED = "fc6 and fc7 keep every fourth feature; the paper's random quarter is unpublished"


@dataclass(frozen=True)
class Row:
    """A row that can be trained by a preset."""

    table: str
    """Number of the table, or test for the test server."""
    label: str
    preset: str
    start: Start
    """What the weights to start from were trained on."""
    before: float | None
    """Mean IoU before the CRF; None where the paper has none."""
    after: float | None
    """Mean IoU after the CRF."""
    guesses: tuple[str, ...] = ()
    """What no source says; without any the row follows the release."""


_TABLE_1 = (
    Row("1", "7x7, rate 4", "table1_7x7", "ImageNet", 64.38, 67.64, (DROPPED_POOLS,)),
    Row("1", "4x4, rate 4", "table1_4x4", "ImageNet", 59.80, 63.74, (TAPS,)),
    Row("1", "4x4, rate 8", "table1_4x4_r8", "ImageNet", 63.41, 67.14, (DROPPED_POOLS, TAPS)),
    Row(
        *("1", "LargeFOV: 3x3, rate 12", "table1_large_fov", "ImageNet", 62.25, 67.64),
        (THINNED,),
    ),
)
_TABLE_2 = tuple(
    Row("2", label, f"table2_{preset}", "ImageNet", before, None, guesses)
    for label, preset, before, guesses in (
        ("step, batch 30, 6K", "step_30_6k", 62.25, (THINNED,)),
        ("poly, batch 30, 6K", "poly_30_6k", 63.42, (THINNED, POOL5A)),
        ("poly, batch 30, 10K", "poly_30_10k", 64.90, (THINNED, POOL5A)),
        ("poly, batch 10, 10K", "poly_10_10k", 64.71, (THINNED, POOL5A)),
        ("poly, batch 10, 20K", "poly_10_20k", 65.88, (THINNED, POOL5A)),
    )
)
_TABLE_3 = (
    Row("3", "LargeFOV", "table3_large_fov", "ImageNet", 65.76, 69.84, (THINNED, POOL5A)),
    Row(
        *("3", "ASPP-S", "table3_aspp_s", "ImageNet", 66.98, 69.73),
        (THINNED, "no average pool after pool5, as ASPP-L has none"),
    ),
    Row("3", "ASPP-L", "table3_aspp_l", "ImageNet", 68.96, 71.57, (THINNED,)),
)
_TABLE_4 = (
    Row("4", "ResNet-101", "table4_plain", "ImageNet", 68.72, None, (NO_RATE, PLAIN)),
    Row("4", "MSC", "table4_msc", "ImageNet", 71.27, None, (NO_RATE, PLAIN)),
    Row("4", "MSC, COCO", "table4_msc_coco", "COCO", 73.28, None, (NO_RATE, PLAIN)),
    Row("4", "MSC, COCO, Aug", "table4_msc_coco_aug", "COCO", 74.87, None, (NO_RATE, PLAIN)),
    Row(
        *("4", "MSC, COCO, Aug, LargeFOV", "table4_msc_coco_aug_large_fov", "COCO", 75.54, None),
        (NO_RATE, "LargeFOV is one 3x3 convolution at rate 12 to the classes"),
    ),
    Row("4", "MSC, COCO, Aug, ASPP", "table4_msc_coco_aug_aspp", "COCO", 76.35, 77.69),
)
_TEST = (
    Row("test", "VGG-16, ASPP-L", "test_vgg16", "ImageNet", None, 72.6, (THINNED,)),
    Row("test", "ResNet-101, ASPP", "test_resnet101", "COCO", None, 79.7),
)

ROWS = (*_TABLE_1, *_TABLE_2, *_TABLE_3, *_TABLE_4, *_TEST)
"""Tables 1 to 4 and the test server. The last row of Table 4 is that before it after the CRF."""


def rows(table: str) -> tuple[Row, ...]:
    """The rows of a table, in its order.

    >>> [row.before for row in rows("3")]
    [65.76, 66.98, 68.96]
    """
    return tuple(row for row in ROWS if row.table == table)


CONTEXT = {
    "VGG-16 LargeFOV": (37.6, 39.6),
    "": (39.6, None),
    "MSC": (41.4, None),
    "MSC, COCO": (42.9, None),
    "MSC, COCO, Aug, LargeFOV": (43.5, None),
    "MSC, COCO, Aug, ASPP": (44.7, 45.7),
}
"""Table 6, PASCAL-Context val, 60 classes, before and after the CRF. Its columns are read from the
text: that the last two rows have augmentation is a guess. The empty name is ResNet-101 alone."""

PERSON_PART = {
    "": (58.90, None),
    "MSC": (63.10, None),
    "MSC, COCO": (64.40, 64.94),
    "MSC, COCO, LargeFOV": (62.18, None),
    "MSC, COCO, ASPP": (62.76, None),
}
"""Table 7, PASCAL-Person-Part val, 7 classes. Which of the last two is which is read from the order
of the columns."""

CITYSCAPES = {
    "VGG-16 LargeFOV, half resolution": (62.97, 64.18),
    "VGG-16 LargeFOV": (64.89, 65.94),
    "": (66.6, None),
    "LargeFOV": (69.2, None),
    "ASPP": (70.4, None),
    "ASPP, Aug": (71.0, 71.4),
}
"""Table 9, Cityscapes val, 19 classes, before and after the CRF; columns read from the text."""

TEST_SERVERS = {
    "VOC 2012 test, VGG-16 ASPP-L": 72.6,
    "VOC 2012 test, ResNet-101": 79.7,
    "VOC 2012 test, LargeFOV, first release": 70.3,
    "Cityscapes test, VGG-16 LargeFOV, before its official release": 63.1,
    "Cityscapes test, the same with coarse masks": 64.8,
    "Cityscapes test, ResNet-101": 70.4,
}
"""Tables 5 and 8, after the CRF."""
