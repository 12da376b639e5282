"""Pictures, figures and the report by what they show."""

import base64
import html
import inspect
import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from scipy import ndimage

from deeplab_jax import figures, metrics, report, visualization
from deeplab_jax.types import IGNORE_LABEL, VOC_CLASS_NAMES, UserError

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


def test_probabilities_in_place_of_labels_are_refused_with_what_to_give():
    overlay = inspect.unwrap(visualization.overlay)  # without the types that tests check
    with pytest.raises(UserError, match=r"\(20, 120, 3\) came; .* give probs.argmax\(-1\)"):
        overlay(draw()[0], np.zeros((20, 120, 3), np.float32))


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


SCORE = {"mean_iou": 0.51239, "iou": {"sky": None, "road": 0.25}}


def write_page(folder, **files):
    """The page of a folder with these JSON files."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return report.write(folder).read_text()


def texts_of(page):
    """The texts of a page between its tags."""
    return "|".join(html.unescape(text) for text in re.split(r"<[^>]*>", page) if text.strip())


def test_the_page_holds_scores_options_and_the_pictures_and_needs_no_network(tmp_path):
    for i, name in enumerate(("sheet.png", "curves.png")):
        Image.fromarray(np.full((4, 4 + i, 3), i, np.uint8)).save(tmp_path / name)
    config = {"model": {"aspp_rates": [6, 12]}, "data": {"root": "a & b"}, "seed": 3}
    page = write_page(tmp_path, score=SCORE, config={"config": config})
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', page)
    files = [(tmp_path / name).read_bytes() for name in ("curves.png", "sheet.png")]
    assert [base64.b64decode(picture) for picture in pictures] == files
    text = texts_of(page)
    assert "mean IoU|0.5124" in text and "road|0.2500" in text and "sky|-" in text
    assert "51.2%" in text
    assert "model.aspp_rates|[6, 12]" in text and "data.root|a & b" in text
    assert "http" not in page and "<script" not in page and "<link" not in page


def test_names_are_text_and_never_markup(tmp_path):
    folder = tmp_path / "<i>run"
    folder.mkdir()
    page = write_page(folder, score={"mean_iou": 0.5, "iou": {"<script>alert('x')</script>": 0.25}})
    assert "<script" not in page and "<i>" not in page
    assert "<script>alert('x')</script>|" in texts_of(page) and "<i>run" in texts_of(page)


def test_scores_after_the_crf_stand_beside_those_of_the_network(tmp_path):
    refined = {"mean_iou": 0.625, "iou": {"sky": None, "road": 0.75}}
    text = texts_of(write_page(tmp_path, score=SCORE, score_after_crf=refined))
    assert "mean IoU|0.5124|0.6250" in text and "road|0.2500|0.7500" in text


def test_the_page_says_what_was_run_on_what_and_for_how_long(tmp_path):
    record = {
        "config": {"batch_size": 8, "data": {"train_split": "train", "val_split": "test"}},
        "command": "python train_voc.py small --data.root 'my pets'",
        "started": "2026-03-04T05:06:07+00:00",
        "device": "2 x H100",
        "split_sizes": {"train": 1200, "test": 233},
        "versions": {"jax": "0.10.2"},
    }
    # 100 updates of 8 at 4 images/s, then 100 at 16: 200 s and 50 s; the score takes no part.
    lines = [(100, 4.0), (200, 16.0), (200, None), (250, None)]
    records = [{"step": step, "images_per_second": speed} for step, speed in lines]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"step": 300')
    text = texts_of(write_page(tmp_path, score=SCORE, config=record))
    assert (
        "trained on|train, 1,200 photographs" in text and "scored on|test, 233 photographs" in text
    )
    assert f"command|{record['command']}|" in text and "started|04 March 2026, 05:06" in text
    assert "training time|0:04:10" in text
    assert "device|2 x H100" in text and "jax 0.10.2" in text


def test_every_score_is_explained():
    tally = metrics.tally(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8), num_classes=2)
    assert metrics.scores(tally).keys() <= report.MEANINGS.keys()


def test_rules_for_absent_classes_are_shown_only_where_they_differ(tmp_path):
    score = {"mean_iou": 0.5, "mean_iou_all_classes": 0.5, "mean_iou_present_or_predicted": 0.4}
    text = texts_of(write_page(tmp_path, score=score))
    assert "mean IoU all classes" not in text and "mean IoU present or predicted|0.4000" in text


def test_an_empty_folder_gives_an_empty_page(tmp_path):
    assert "<img" not in write_page(tmp_path)


CLASSES = ("sky", "road $5", "tree")
CONFUSION = np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]])


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_a_confusion_matrix_shows_shares_of_the_truth_in_percent():
    figure = figures.confusion(CONFUSION, CLASSES)
    axes, colorbar = figure.axes
    shares = np.asarray(axes.get_images()[0].get_array().filled(np.nan))
    expected = [[75, 25, 0], [0, 50, 50], [np.nan] * 3]
    np.testing.assert_array_equal(shares, expected)
    assert texts(axes) == {"75", "25", "50"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted (network)", "truth")
    assert "%" in colorbar.get_ylabel()
    many = figures.confusion(np.eye(60, dtype=int), [f"class {i}" for i in range(60)])
    assert not texts(many.axes[0])  # there is no room


def test_bars_are_the_iou_of_each_class_and_lines_their_means():
    scores = {"network": np.array([0.5, np.nan, 0.3]), "after CRF": np.array([0.6, np.nan, 0.4])}
    figure = figures.class_bars(scores, CLASSES)
    axes = figure.axes[0]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[0.5, 0, 0.3], [0.6, 0, 0.4]]
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([0.4, 0.5])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["network (mean 0.400)", "after CRF (mean 0.500)"]


def test_a_class_named_like_a_formula_is_drawn_as_it_is_written(tmp_path):
    names = ("$\\nonsense{$", "a_b", "<b>")
    figures.save(figures.confusion(CONFUSION, names), tmp_path / "confusion.png")
    figures.save(figures.class_bars({"$x$ {": np.ones(3)}, names), tmp_path / "bars.png")
    assert all(np.asarray(Image.open(p)).std() > 10 for p in tmp_path.glob("*.png"))


def test_curves_are_drawn_for_what_was_recorded_and_a_long_loss_has_its_running_median():
    records = [{"step": i, "loss": 1 / i, "learning_rate": 0.1} for i in range(1, 4)]
    assert [a.get_ylabel() for a in figures.curves(records).axes] == ["loss", "learning rate"]
    loss, _, score = figures.curves([*records, {"step": 3, "mean_iou": 0.5}]).axes
    assert loss.lines[0].get_ydata().tolist() == [1, 1 / 2, 1 / 3]
    assert score.lines[0].get_xydata().tolist() == [[3, 0.5]]
    assert score.get_ylim() == (0, 1)
    figures.curves([])
    losses = np.random.default_rng(0).normal(size=40)
    axes = figures.curves([{"step": i, "loss": loss} for i, loss in enumerate(losses)]).axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()][1] == "running median"
    assert axes.lines[1].get_ydata()[20] == np.median(losses[16:25])  # 9 of 40


def test_a_sweep_draws_every_seed_and_the_mean():
    figure = figures.sweep({"narrow": ([0.5, 0.6], [0.7]), "wide": ([0.4], [])})
    axes = figure.axes[0]
    assert [sorted(line.get_ydata()) for line in axes.lines] == [[0.5, 0.6], [0.4], [0.7]]
    means = [segment[0][1] for c in axes.collections for segment in c.get_segments()]
    assert means == pytest.approx([0.55, 0.4, 0.7])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["narrow", "wide"]


def test_long_names_of_a_sweep_do_not_overlap():
    names = [f"{preset} {rates}" for preset in ("resnet101_aspp_msc", "vgg") for rates in "ABC"]
    figure = figures.sweep({name: ([0.5], []) for name in [*names, "MSC, COCO, Aug, LargeFOV"]})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert all(box.y0 > 0 for box in boxes)


def test_trimap_curves_start_at_a_band_of_one_pixel_before_and_after_the_crf():
    before, after = np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.3, 0.4])
    axes = figures.trimap({"run": [before, after]}, boundary="classes").axes[0]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2, 3]] * 2
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["run, before CRF", "run, after CRF"]
    assert "class boundaries (pixels)" in axes.get_xlabel()


def test_a_picture_is_shown_pixel_by_pixel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    figures.save(figures.picture(pixels), tmp_path / "picture.png", dpi=100)
    shown = np.asarray(Image.open(tmp_path / "picture.png"))[..., :3]
    np.testing.assert_array_equal(shown, pixels)
