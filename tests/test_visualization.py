import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from deeplab_jax import visualization
from deeplab_jax.types import IGNORE_LABEL, VOC_CLASS_NAMES

# As published with PASCAL VOC 2012, background to tvmonitor.
VOC_COLORS = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
    (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128),
    (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0),
    (128, 192, 0), (0, 64, 128),
]  # fmt: skip
NAMES = ("background", "cat", "dog")
CREAM = [224, 224, 192]


def draw(height=20, width=120):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    labels = np.zeros((height, width), np.uint8)
    labels[:, 40:80] = 1
    labels[:, 80:] = IGNORE_LABEL
    return image, labels


def differences(colors):
    """Distances between any two colours, in steps of 0..255 of red, green and blue."""
    colors = colors.astype(float)
    distance = np.linalg.norm(colors[:, None] - colors, axis=-1)
    return distance[np.triu_indices(len(colors), 1)]


def test_the_palette_is_that_of_pascal_voc():
    palette = visualization.palette()
    assert [tuple(c) for c in palette[:21].tolist()] == VOC_COLORS
    assert palette[IGNORE_LABEL].tolist() == CREAM
    assert len(np.unique(palette, axis=0)) == 256
    np.testing.assert_array_equal(visualization.palette(VOC_CLASS_NAMES), palette)


def test_classes_of_other_data_have_colours_that_can_be_told_apart():
    ours = visualization.palette([f"class {i}" for i in range(20)])
    assert differences(ours[[*range(20), IGNORE_LABEL]]).min() > 50
    assert differences(visualization.palette()[:20]).min() < 65  # VOC's cannot: two dark reds
    assert ours[:20].max(1).min() > 80  # none is black
    assert ours[IGNORE_LABEL].tolist() == CREAM
    assert visualization.palette(NAMES)[0].tolist() == [0, 0, 0]  # but background
    own = [(128, 64, 128), (70, 130, 180), (0, 0, 0)]  # the data set's own
    assert visualization.palette(NAMES, own)[:3].tolist() == [list(color) for color in own]
    alike = [(1, 1, 1), (2, 2, 2), (3, 3, 3)]  # ids that a tool wrote as grey colours
    np.testing.assert_array_equal(visualization.palette(NAMES, alike), visualization.palette(NAMES))


def test_an_error_map_is_red_where_labels_are_wrong_and_white_where_nothing_counts():
    image = np.full((2, 3, 3), 100, np.uint8)
    truth = np.array([[0, 1, IGNORE_LABEL], [2, 2, 2]])
    labels = np.array([[0, 0, 0], [2, 1, 2]])
    drawn = visualization.error_map(image, labels, truth)
    red = np.array([[0, 1, 0], [0, 1, 0]], bool)
    np.testing.assert_array_equal((drawn == visualization.WRONG).all(-1), red)
    assert (drawn[0, 2] == 255).all()
    assert len(np.unique(drawn[[0, 1, 1], [0, 0, 2]])) == 1  # right pixels are the grey photograph


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
    names = ("sky", "cat", "dog")  # no background
    painted = visualization.overlay(image, labels, class_names=names, opacity=1.0)
    assert (painted[:20, :40] == visualization.palette(names)[0]).all()


def test_the_legend_below_an_overlay_shows_the_classes_that_occur_in_as_many_lines_as_it_needs():
    image, labels = draw()
    picture = visualization.overlay(image, labels, class_names=NAMES)
    colors = visualization.palette(NAMES)
    np.testing.assert_array_equal(picture[:20], visualization.overlay(image, labels, colors=colors))
    shown = [(picture[20:] == color).all(-1).any() for color in colors[1:3]]
    assert shown == [True, False]  # no dog
    one, two = (visualization.legend([1, 2], NAMES, width=width) for width in (400, 70))
    assert two.shape[0] == 2 * one.shape[0]
    assert all((two == color).all(-1).any() for color in colors[1:3])


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
    other, _ = written(np.where(labels == 1, np.uint8(2), labels), font_size)
    assert (ink != other).any()


def test_ids_and_legend_grow_with_a_large_photograph():
    image = np.zeros((200, 2000, 3), np.uint8)
    labels = np.ones((200, 2000), np.uint8)
    picture = visualization.overlay(image, labels, class_names=NAMES)
    assert len(picture) - 200 == 2000 // 50 + 8
    rows = np.flatnonzero((picture[:200] > 200).all(-1).any(1))
    assert 20 < np.ptp(rows) < 40  # of a font of 40 pixels


def test_a_sheet_shows_rows_of_a_photograph_label_maps_and_pictures_under_titles_and_captions():
    image, labels = draw(30, 30)
    labels[0] = IGNORE_LABEL
    after = np.full_like(labels, 2)
    wrong = visualization.error_map(image, labels, 1 - labels % 2)
    texts = {"titles": ("photograph", "truth", "prediction", "errors"), "captions": ("1", "2")}
    page = visualization.sheet([(image, labels, after, wrong)] * 2, NAMES, **texts, side=30)
    colors = visualization.palette(NAMES)
    maps = [visualization.write_ids(visualization.colorize(m, colors), m) for m in (labels, after)]
    row, step = visualization.ROW, 30 + visualization.GAP
    for top in (2 * row, 3 * row + step):
        assert page[top - row : top].min() < 100  # the caption
        for i, picture in enumerate((image, *maps, wrong)):
            np.testing.assert_array_equal(page[top : top + 30, i * step : i * step + 30], picture)
    # The legend names void where it occurs.
    below = visualization.legend([0, 2, IGNORE_LABEL], NAMES, width=page.shape[1])
    np.testing.assert_array_equal(page[-len(below) :], below)
    assert (below == CREAM).all(-1).sum() > 100
