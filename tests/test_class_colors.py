"""The colours of classes in pictures, from the files of a data set to those of a run."""

import numpy as np
import pytest
from drawn_folder import draw_folder

from deeplab_jax import segmenter, visualization
from deeplab_jax.data import layouts

SKY, ROAD, CAR = (70, 130, 180), (128, 64, 128), (0, 0, 142)


@pytest.fixture
def root(tmp_path):
    draw_folder(tmp_path)
    return tmp_path


def colors_of(root, labels=None, mapping=None):
    if labels is not None:
        (root / "labels.txt").write_text(labels)
    if mapping is not None:
        (root / "mapping.txt").write_text(mapping)
    folder = layouts.find_folder(root)
    return folder.class_names, folder.class_colors


@pytest.mark.parametrize(
    ("lines", "third", "colors"),
    [
        ("sky #4682B4\nroad #804080\nfast car #00008e\n", "fast car", (SKY, ROAD, CAR)),
        ("1 road #804080\n0 sky #4682B4\n2 car #00008E\n", "car", (SKY, ROAD, CAR)),
        ("sky #4682B4\nroad\ncar no#1\n", "car no#1", None),
    ],
)
def test_a_line_of_labels_may_end_in_the_colour_of_its_class_if_all_do(root, lines, third, colors):
    assert colors_of(root, lines) == (("sky", "road", third), colors)


def test_the_first_colour_of_a_class_in_the_mapping_is_taken(root):
    mapping = "70 130 180 0\n#804080 1\n0 0 142 2\n0 0 70 2\n* 255\n"
    assert colors_of(root, "sky\nroad\ncar\n", mapping)[1] == (SKY, ROAD, CAR)


def test_a_mapping_of_raw_ids_names_no_colours(root):
    assert colors_of(root, "sky\nroad\n", "7 0\n8 1\n* 255\n")[1] is None


def test_a_network_has_the_colours_of_its_data_or_those_of_its_names():
    meta = {"class_names": ("sky", "road"), "class_colors": (SKY, ROAD)}
    assert segmenter.Segmenter(None, {}, meta).palette.tolist() == [list(SKY), list(ROAD)]
    del meta["class_colors"]
    own = visualization.palette(meta["class_names"])[:2]
    np.testing.assert_array_equal(segmenter.Segmenter(None, {}, meta).palette, own)
