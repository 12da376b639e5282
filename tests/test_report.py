import base64
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from deeplab_jax import metrics, report


class Page(HTMLParser):
    """Tags, pictures and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_data(self, data):
        self.text.append(data)


def draw_folder(folder, class_name="road"):
    score = {"mean_iou": 0.51239, "iou": {"sky": None, class_name: 0.25}}
    (folder / "score.json").write_text(json.dumps(score))
    config = {"model": {"aspp_rates": [6, 12]}, "data": {"root": "a & b"}, "seed": 3}
    (folder / "config.json").write_text(json.dumps({"config": config}))
    for i, name in enumerate(("sheet.png", "curves.png")):
        Image.fromarray(np.full((4, 4 + i, 3), i, np.uint8)).save(folder / name)


def test_the_page_holds_scores_options_and_the_pictures_themselves(tmp_path):
    draw_folder(tmp_path)
    whole = report.write(tmp_path).read_text()
    assert "http" not in whole and "<script" not in whole and "<link" not in whole
    page = Page(whole)
    shown = [base64.b64decode(src.removeprefix("data:image/png;base64,")) for src in page.pictures]
    assert shown == [(tmp_path / name).read_bytes() for name in ("curves.png", "sheet.png")]
    text = "|".join(page.text)
    assert "mean IoU|0.5124" in text and "road|0.2500" in text and "sky|-" in text
    assert "51.2%" in text
    assert "model.aspp_rates|[6, 12]" in text and "data.root|a & b" in text


def test_names_are_text_and_never_markup(tmp_path):
    folder = tmp_path / "<i>run"
    folder.mkdir()
    draw_folder(folder, class_name="<script>alert('x')</script>")
    page = Page(report.write(folder).read_text())
    assert not {"script", "i"} & set(page.tags)
    assert "<script>alert('x')</script>" in page.text
    assert "<i>run" in page.text


def test_scores_after_the_crf_stand_beside_those_of_the_network(tmp_path):
    draw_folder(tmp_path)
    refined = {"mean_iou": 0.625, "iou": {"sky": None, "road": 0.75}}
    (tmp_path / report.REFINED).write_text(json.dumps(refined))
    text = "|".join(Page(report.write(tmp_path).read_text()).text)
    assert "mean IoU|0.5124|0.6250" in text and "road|0.2500|0.7500" in text


def test_the_page_says_what_was_run_on_what_and_for_how_long(tmp_path):
    draw_folder(tmp_path)
    record = {
        "config": {"batch_size": 8, "data": {"root": "pets", "train_split": "train"}},
        "command": "python train_voc.py small --data.root 'my pets'",
        "started": "2026-03-04T05:06:07+00:00",
        "device": "2 x H100",
        "split_sizes": {"train": 1200},
        "versions": {"jax": "0.10.2"},
    }
    (tmp_path / "config.json").write_text(json.dumps(record))
    # 100 updates of 8 at 4 images/s, then 100 at 16: 200 s and 50 s; the score takes no part.
    lines = [(100, 4.0), (200, 16.0), (200, None), (250, None)]
    records = [{"step": step, "images_per_second": speed} for step, speed in lines]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)) + '\n{"step": 300')
    text = "|".join(Page(report.write(tmp_path).read_text()).text)
    assert "trained on|train, 1,200 photographs" in text and "data|pets" in text
    assert f"command|{record['command']}|" in text and "started|04 March 2026, 05:06" in text
    assert "training time|4 min 10 s" in text
    assert "device|2 x H100" in text and "jax 0.10.2" in text


def test_every_score_is_explained():
    tally = metrics.tally(np.eye(4, dtype=np.uint8), np.eye(4, dtype=np.uint8), num_classes=2)
    assert metrics.split_scores(tally).keys() <= report.MEANINGS.keys()


def test_rules_for_absent_classes_are_shown_only_where_they_differ(tmp_path):
    score = {"mean_iou": 0.5, "mean_iou_all_classes": 0.5, "mean_iou_present_or_predicted": 0.4}
    (tmp_path / "score.json").write_text(json.dumps(score))
    text = "|".join(Page(report.write(tmp_path).read_text()).text)
    assert "mean IoU all classes" not in text and "mean IoU present or predicted|0.4000" in text


def test_an_empty_folder_gives_an_empty_page(tmp_path):
    assert Page(report.write(tmp_path).read_text()).pictures == []
