import csv
import math
import statistics

import pytest

from deeplab_jax import tables


def result(label, seed, before, after=None, *, rates="2, 4", speed=10.0):
    return tables.Result(
        label=label,
        seed=seed,
        settings={"rates": rates},
        parameters=1234567,
        images_per_second=speed,
        seconds=60.0,
        before=before,
        after=after,
        command="python train_voc.py",
        device="CPU",
    )


SWEEP = [
    result("narrow", 0, 0.50, 0.51),
    result("narrow", 1, 0.54, 0.52),
    result("wide", 0, 0.60, 0.61, rates="24†"),
    result("wide", 1, 0.55, 0.53, rates="24†"),
    result("odd", 0, 0.50, 0.51),
]


def cells(text):
    lines = [line.strip("|").split("|") for line in text.splitlines()]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_table_has_a_row_for_each_label_with_mean_and_deviation_over_seeds():
    narrow, wide, odd = cells(tables.markdown(SWEEP, published={}))
    assert narrow["mean IoU %"] == f"52.00 ± {100 * statistics.stdev([0.50, 0.54]):.2f}"
    assert wide["mean IoU after CRF %"] == f"57.00 ± {100 * statistics.stdev([0.61, 0.53]):.2f}"
    assert (narrow["seeds"], odd["seeds"]) == ("2", "1")
    assert odd["mean IoU %"] == "50.00"  # one seed has no deviation
    assert (wide["rates"], wide["parameters"]) == ("24†", "1,234,567")
    assert wide["images/s in training"] == "10"
    assert "paper %" not in narrow


def test_published_numbers_stand_beside_their_rows_only_when_they_are_given():
    narrow, wide, _ = cells(tables.markdown(SWEEP, published={"narrow": (65.76, None)}))
    assert (narrow["paper %"], narrow["paper after CRF %"]) == ("65.76", "")
    assert wide["paper %"] == ""


def test_without_a_crf_there_is_no_column_for_it():
    (row,) = cells(tables.markdown([result("narrow", 0, 0.5)], published={}))
    assert "mean IoU after CRF %" not in row


def test_a_seed_that_trained_other_rates_shows_in_its_row():
    mixed = [result("a", 0, 0.5), result("a", 1, 0.5, rates="3")]
    assert cells(tables.markdown(mixed, published={}))[0]["rates"] == "2, 4 or 3"


def test_a_difference_counts_when_no_seeds_of_the_two_rows_overlap():
    said = "\n".join(tables.verdicts(SWEEP))
    assert "wide against narrow, before CRF: +5.50 points, more than the spread" in said
    assert "wide against narrow, after CRF: +5.50 points, more than the spread" in said
    assert "odd against wide, before CRF: -7.50 points, of one seed" in said
    assert "odd against narrow" in said
    overlapping = [SWEEP[0], SWEEP[1], result("b", 0, 0.53), result("b", 1, 0.6)]
    assert "+4.50 points, within the spread" in tables.verdicts(overlapping)[0]


def test_csv_files_hold_the_numbers_of_rows_and_of_runs(tmp_path):
    for name, lines in (("rows", tables.summaries(SWEEP)), ("runs", tables.records(SWEEP))):
        tables.write_csv(tmp_path / name, lines)
    with (tmp_path / "rows").open() as file:
        narrow, _, odd = csv.DictReader(file)
    assert float(narrow["mean_iou_mean"]) == pytest.approx(0.52)
    assert float(narrow["mean_iou_std"]) == pytest.approx(statistics.stdev([0.50, 0.54]))
    assert math.isnan(float(odd["mean_iou_after_crf_std"]))
    with (tmp_path / "runs").open() as file:
        runs = list(csv.DictReader(file))
    assert [(r["row"], r["seed"], float(r["mean_iou"])) for r in runs] == [
        (r.label, str(r.seed), r.before) for r in SWEEP
    ]
    assert runs[2]["rates"] == "24"  # a number for whoever reads the file
