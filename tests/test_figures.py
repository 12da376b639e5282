"""Figures by what they draw: values, labels, legends; a picture file is looked at by people."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from deeplab_jax import figures

NAMES = ("sky", "road $5", "tree")
CONFUSION = np.array([[3, 1, 0], [0, 2, 2], [0, 0, 0]])


def texts(axes):
    return {text.get_text() for text in axes.texts}


def test_a_confusion_matrix_shows_shares_of_the_truth_in_percent():
    figure = figures.confusion(CONFUSION, NAMES)
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
    figure = figures.class_bars(scores, NAMES)
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
