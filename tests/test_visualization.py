import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from deeplab_jax import visualization
from deeplab_jax.types import IGNORE_LABEL

# As published with PASCAL VOC 2012, background to tvmonitor.
VOC_COLORS = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
    (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128),
    (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0),
    (128, 192, 0), (0, 64, 128),
]  # fmt: skip
NAMES = ("background", "cat", "dog")


def draw(height=20, width=120):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    labels = np.zeros((height, width), np.uint8)
    labels[:, 40:80] = 1
    labels[:, 80:] = IGNORE_LABEL
    return image, labels


def test_the_palette_is_that_of_pascal_voc():
    palette = visualization.palette()
    assert [tuple(c) for c in palette[:21].tolist()] == VOC_COLORS
    assert palette[IGNORE_LABEL].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


def test_saved_labels_read_back_as_the_same_ids(tmp_path):
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    visualization.save_labels(tmp_path / "labels.png", labels)
    picture = Image.open(tmp_path / "labels.png")
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), labels)
    colors = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(colors, visualization.palette()[labels])


def test_an_overlay_mixes_classes_and_leaves_background_and_ignored_pixels():
    image, labels = draw()
    picture = visualization.overlay(image, labels, opacity=0.25)
    np.testing.assert_array_equal(picture[:, :40], image[:, :40])
    np.testing.assert_array_equal(picture[:, 80:], image[:, 80:])
    expected = 0.75 * image[:, 40:80] + 0.25 * np.array([128, 0, 0])
    assert np.abs(picture[:, 40:80] - expected).max() <= 0.5 + 1e-9


def test_class_0_is_painted_where_it_is_no_background():
    image, labels = draw()
    names = ("sky", "cat", "dog")
    painted = visualization.overlay(image, labels, class_names=names, opacity=1.0)
    assert (painted[:20, :40] == 0).all()  # colour of class 0


def test_the_legend_below_an_overlay_shows_the_classes_that_occur():
    image, labels = draw()
    picture = visualization.overlay(image, labels, class_names=NAMES)
    np.testing.assert_array_equal(picture[:20], visualization.overlay(image, labels))
    strip = picture[20:].reshape(-1, 3).tolist()
    assert [128, 0, 0] in strip
    assert [0, 128, 0] not in strip  # no dog


def test_a_legend_takes_as_many_lines_as_it_needs():
    one = visualization.legend([1, 2], NAMES, width=400)
    two = visualization.legend([1, 2], NAMES, width=70)
    assert two.shape[0] == 2 * one.shape[0]
    assert {(128, 0, 0), (0, 128, 0)} <= set(map(tuple, two.reshape(-1, 3).tolist()))


def written(labels, font_size):
    """Where ids are written on black, and the middles of what is written."""
    black = np.zeros((*labels.shape, 3), np.uint8)
    ink = visualization.write_ids(black, labels, font_size=font_size).max(-1) > 200
    groups, count = ndimage.label(ndimage.binary_dilation(ink, iterations=3))
    return ink, ndimage.center_of_mass(ink, groups, range(1, count + 1))


@pytest.mark.parametrize("font_size", [14, 42])
def test_ids_stand_in_the_middle_of_wide_regions_and_nowhere_else(font_size):
    unit = font_size
    labels = np.full((4 * unit, 12 * unit), IGNORE_LABEL, np.uint8)
    labels[:, : 4 * unit] = 1
    labels[:, 4 * unit : 5 * unit] = 2  # too narrow
    labels[:, 8 * unit :] = 1
    ink, middles = written(labels, font_size)
    expected = [(2 * unit, 2 * unit), (2 * unit, 10 * unit)]
    np.testing.assert_allclose(sorted(middles, key=lambda m: m[1]), expected, atol=unit / 3)
    assert not ink[:, 4 * unit : 8 * unit].any()


def test_other_classes_are_written_as_other_ids():
    one, two = (written(np.full((60, 60), c, np.uint8), 14)[0] for c in (1, 2))
    assert one.any() and two.any() and (one != two).any()


def test_ids_and_legend_grow_with_a_large_photograph():
    image = np.zeros((200, 2000, 3), np.uint8)
    labels = np.ones((200, 2000), np.uint8)
    picture = visualization.overlay(image, labels, class_names=NAMES)
    assert len(picture) - 200 == 2000 // 50 + 8
    rows = np.flatnonzero((picture[:200] > 200).all(-1).any(1))
    assert 20 < np.ptp(rows) < 40  # of a font of 40 pixels


def test_a_sheet_shows_photograph_truth_and_prediction_in_a_row():
    image, labels = draw(30, 30)
    rows = [(image, labels, np.full_like(labels, 2))]
    page = visualization.sheet(rows, NAMES, side=30)
    top = visualization.ROW
    drawn = [visualization.write_ids(visualization.colorize(m), m) for m in rows[0][1:]]
    for i, picture in enumerate((image, *drawn)):
        np.testing.assert_array_equal(page[top : top + 30, 36 * i : 36 * i + 30], picture)


def test_the_legend_of_a_sheet_names_void_where_it_occurs():
    image, labels = draw(30, 30)
    labels[0] = 255
    page = visualization.sheet([(image, labels, labels)], NAMES, side=30)
    found = np.unique(labels).tolist()
    assert found[-1] == 255
    below = visualization.legend(found, NAMES, width=page.shape[1])
    np.testing.assert_array_equal(page[-len(below) :], below)
    cream = (below == visualization.palette()[255]).all(-1)
    assert cream.sum() > 100


def test_a_sheet_takes_more_label_maps_and_a_caption_above_each_row():
    image, labels = draw(30, 30)
    after = np.full_like(labels, 2)
    page = visualization.sheet(
        [(image, labels, labels, after)] * 2,
        NAMES,
        titles=("photograph", "truth", "before CRF", "after CRF"),
        captions=("first", "second"),
        side=30,
    )
    row, step = visualization.ROW, 30 + visualization.GAP
    for top in (2 * row, 3 * row + step):
        np.testing.assert_array_equal(page[top : top + 30, :30], image)
        last = page[top : top + 30, 3 * step : 3 * step + 30]
        np.testing.assert_array_equal(last[:8], visualization.colorize(after)[:8])
        assert page[top - row : top].min() < 100  # the caption
