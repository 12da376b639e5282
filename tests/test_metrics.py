import math
from functools import partial

import numpy as np
import pytest
import reference

from deeplab_jax import metrics
from deeplab_jax.types import IGNORE_LABEL

TRUTH = np.array([[0, 0, 0, 1], [1, 1, 2, IGNORE_LABEL]])
PREDICTED = np.array([[0, 0, 1, 1], [1, 0, 0, 2]])
# class 0: 2 right, 1 missed, 2 wrongly claimed; class 1: 2, 1, 1; class 2: 0, 1, 0
CONFUSION = np.array([[2, 1, 0], [1, 2, 0], [1, 0, 0]])


def test_confusion_and_iou_agree_with_counting_sets():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 3, 4, IGNORE_LABEL], (20, 15)).astype(np.uint8)  # 2 is absent
    predicted = rng.integers(0, 4, (20, 15), np.uint8)  # 4 is never predicted
    confusion = metrics.confusion_matrix(labels, predicted, num_classes=6)
    np.testing.assert_array_equal(confusion, reference.confusion(labels, predicted, 6))
    expected = reference.iou(labels, predicted, 6)
    assert expected[5] is None
    np.testing.assert_allclose(
        metrics.iou(confusion), [math.nan if v is None else v for v in expected]
    )


def test_scores_of_the_example_are_those_by_hand():
    confusion = metrics.confusion_matrix(TRUTH, PREDICTED, num_classes=3)
    np.testing.assert_array_equal(confusion, CONFUSION)
    assert metrics.iou(confusion).tolist() == [2 / 5, 2 / 4, 0]
    mean_iou = (2 / 5 + 2 / 4 + 0) / 3
    expected = {
        "mean_iou": mean_iou,
        "mean_iou_all_classes": mean_iou,
        "mean_iou_present_or_predicted": mean_iou,
        "pixel_accuracy": 4 / 7,
        "mean_accuracy": (2 / 3 + 2 / 3 + 0) / 3,
        "frequency_weighted_iou": (3 * 2 / 5 + 3 * 2 / 4 + 1 * 0) / 7,
    }
    found = metrics.scores(of_confusion(confusion))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


# Four classes: 2 is predicted and not in the truth, 3 is in neither. IoU 3/4, 1, 0, none.
ABSENT = np.array([[3, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_the_three_rules_differ_by_the_classes_absent_from_the_truth():
    found = metrics.scores(of_confusion(ABSENT))
    assert found["mean_iou"] == pytest.approx((3 / 4 + 1) / 2)  # classes of the truth
    assert found["mean_iou_all_classes"] == pytest.approx((3 / 4 + 1 + 0 + 0) / 4)  # Caffe's
    # torchmetrics and mmsegmentation: classes whose union has a pixel
    assert found["mean_iou_present_or_predicted"] == pytest.approx((3 / 4 + 1 + 0) / 3)


def test_nothing_but_ignored_pixels_scores_nothing():
    labels = np.full((2, 2), IGNORE_LABEL, np.uint8)
    confusion = metrics.confusion_matrix(labels, np.zeros_like(labels), num_classes=2)
    assert confusion.sum() == 0
    assert math.isnan(metrics.mean_iou(confusion))
    assert math.isnan(metrics.scores(of_confusion(confusion))["pixel_accuracy"])


def of_confusion(confusion):
    """A tally that has this confusion matrix and no boundary."""
    return metrics.empty_tally(len(confusion))._replace(confusion=confusion)


def test_report_and_table_name_classes_and_the_papers_rule_where_it_differs():
    names = ["sky", "road", "tree"]
    split = of_confusion(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))
    report = metrics.report(split, names)
    assert report["iou"] == {"sky": 0.75, "road": 0.0, "tree": None}
    assert report["mean_iou"] == 0.75
    table = metrics.table(split, names)
    assert "counted as 0, as in the paper: 0.2500" in table
    assert "counted as 0 where it is predicted, as elsewhere: 0.3750" in table
    assert "sky                     0.7500        - 100.0%" in table
    assert "paper" not in metrics.table(of_confusion(CONFUSION), names)


def test_the_mean_over_photographs_leaves_out_those_without_labels():
    void = np.full((2, 2), IGNORE_LABEL, np.uint8)
    right, half = np.array([[0, 1]]), np.array([[0, 0]])
    total = metrics.empty_tally(2)
    for labels, predicted in [(right, right), (right, half), (void, np.zeros((2, 2), np.uint8))]:
        total = metrics.add(total, metrics.tally(labels, predicted, num_classes=2))
    assert total.photographs[0] == 2
    # The second: class 0 has an IoU of 1/2, class 1 of 0.
    assert metrics.mean_iou_per_photograph(total) == pytest.approx((1 + 1 / 4) / 2, abs=1e-12)
    assert math.isnan(metrics.mean_iou_per_photograph(metrics.empty_tally(2)))


@pytest.mark.parametrize("shape", [(28, 30), (7, 60), (90, 120), (1, 1)])
def test_boundary_bands_agree_with_their_definition(shape):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (10, 12)), np.ones((9, 10), int))[: shape[0], : shape[1]]
    predicted = np.roll(labels, 2, (0, 1)).astype(np.uint8)
    labels = labels.astype(np.uint8)
    labels[rng.random(shape) < 0.02] = IGNORE_LABEL
    found = metrics.boundary_bands(labels, predicted, num_classes=5)
    np.testing.assert_array_equal(found, reference.boundary_bands(labels, predicted, 5, 0.02))
    assert found[4].tolist() == [0, 0]


def square(margin):
    labels = np.zeros((100, 100), np.uint8)
    labels[margin : 100 - margin, margin : 100 - margin] = 1
    return labels


def test_boundary_iou_falls_more_than_iou_where_an_outline_is_off():
    labels = square(20)
    split = metrics.tally(labels, np.roll(labels, 2, 1), num_classes=2)
    assert metrics.boundary_iou(split)[1] < metrics.iou(split.confusion)[1] - 0.2
    same = metrics.tally(labels, labels, num_classes=2)
    np.testing.assert_array_equal(metrics.boundary_iou(same), [1, 1])


def test_a_prediction_that_ends_inside_a_void_band_has_the_right_outline():
    labels = np.where(square(15) > square(20), IGNORE_LABEL, square(20)).astype(np.uint8)
    for margin in (15, 17, 20):
        split = metrics.tally(labels, square(margin), num_classes=2)
        np.testing.assert_array_equal(metrics.boundary_iou(split), [1, 1])


def blocks(seed=0):
    """A map of class blocks with stray void, and a prediction that errs by chance."""
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 4, (4, 5)), np.ones((7, 6), int)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.01] = IGNORE_LABEL
    return labels, rng.integers(0, 4, labels.shape, np.uint8)


@pytest.mark.parametrize("boundary", ["void", "classes"])
def test_trimap_bands_agree_with_their_definition(boundary):
    labels, predicted = blocks()
    found = metrics.trimap_confusions(
        labels, predicted, num_classes=4, max_width=8, boundary=boundary
    )
    for width, confusion in enumerate(found, 1):
        band = reference.trimap(labels, width=width, boundary=boundary)
        expected = reference.confusion(labels[band], predicted[band], 4)
        np.testing.assert_array_equal(confusion, expected)
    assert 0 < found[0].sum() < found[-1].sum()
    whole = metrics.confusion_matrix(labels, predicted, num_classes=4)
    widest = partial(metrics.trimap_confusions, num_classes=4, max_width=40, boundary=boundary)
    np.testing.assert_array_equal(widest(labels, predicted)[-1], whole)
    none = np.ones_like(labels)  # no boundary, so no band
    assert widest(none, none).sum() == 0
