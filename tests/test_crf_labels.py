"""The CRF from labels: energies, `refine_labels`, and the script for folders."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import refine_masks
from crf_drawings import photograph, two_halves
from PIL import Image
from pycocotools import mask as COCO
from scipy import ndimage

from deeplab_jax import crf, metrics
from deeplab_jax.data import coco
from deeplab_jax.types import IGNORE_LABEL, UserError

DATA = Path(os.environ.get("DEEPLAB_JAX_DATA", "not given"))


def test_energies_of_labels_are_minus_log_of_their_probabilities():
    energies = crf.unary_from_labels(np.array([[0, 2, 255]]), 3, gt_prob=0.8)
    expected = -np.log([[[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]]])
    np.testing.assert_allclose(energies, expected, rtol=1e-6)
    unsure = crf.unary_from_labels(np.array([[1, 3, 0]]), 3, gt_prob=0.8, zero_unsure=True)
    np.testing.assert_array_equal(unsure, energies)


@pytest.mark.parametrize(("h", "w", "max_pixels"), [(24, 32, None), (60, 96, 1500)])
def test_wrong_and_missing_labels_are_put_right_at_a_smaller_scale_too(h, w, max_pixels):
    image, truth = two_halves(h, w)
    labels = truth.copy()
    labels[:, w // 2 - 2 : w // 2 + 4] = 1  # an edge in the wrong place
    labels[5:8, 3:6] = 4  # a speck
    labels[15:20, w // 2 + 6 : w // 2 + 14] = IGNORE_LABEL
    options = {"gt_prob": 0.7, "max_pixels": max_pixels}
    refined = crf.refine_labels(image, labels, crf.SCRIBBLE_PARAMS, **options)
    assert refined.dtype == np.uint8
    np.testing.assert_array_equal(refined, truth)


def test_missing_labels_may_stay_and_labels_are_trusted_above_a_half():
    image, truth = two_halves()
    labels = np.where(np.arange(32) < 20, truth, IGNORE_LABEL)
    kept = crf.refine_labels(image, labels, fill_unsure=False)
    np.testing.assert_array_equal(kept == IGNORE_LABEL, labels == IGNORE_LABEL)
    labels = truth.copy()
    labels[5:8, 3:6] = 4
    np.testing.assert_array_equal(crf.refine_labels(image, labels), truth)
    with pytest.raises(UserError, match="above 1/2 for 2 labels .*got 0.5"):
        crf.refine_labels(image, labels, gt_prob=0.5)


def discs(apart=True):
    """Two discs of their own colours, which touch or overlap, and their true masks."""
    y, x = np.mgrid[:60, :90]
    truth = np.stack([(y - 30) ** 2 + (x - c) ** 2 < 14**2 for c in (25, 53 if apart else 45)])
    image = np.full((60, 90, 3), 40, np.uint8)
    for mask, color in zip(truth, ((200, 60, 40), (40, 90, 200)), strict=True):
        image[mask] = color
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), truth


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_masks_of_objects_move_to_their_edges(kind):
    image, truth = discs()
    rough = np.roll(truth, (2, -2), (1, 2))
    masks = np.where(rough, 0.8, 0.1).astype(kind) if kind is np.float32 else rough.astype(kind)
    refined = crf.refine_objects(image, masks, gt_prob=0.7)
    assert refined.dtype == bool
    assert (refined != truth).mean() < 0.1 * (rough != truth).mean()
    empty = np.zeros_like(masks[:1])
    np.testing.assert_array_equal(crf.refine_objects(image, np.r_[empty, masks])[1:], refined)


def test_objects_far_away_change_nothing_and_overlaps_stay_unless_told():
    image, truth = discs(apart=False)
    together, alone = crf.refine_objects(image, truth), crf.refine_objects(image, truth[:1])
    np.testing.assert_array_equal(together[:1], alone)
    big = np.pad(image, ((0, 200), (0, 300), (0, 0)))
    padded = np.pad(truth, ((0, 0), (0, 200), (0, 300)))
    np.testing.assert_array_equal(
        crf.refine_objects(big, padded)[:, :40, :70], together[:, :40, :70]
    )
    claimed = crf.refine_objects(image, np.stack([truth[0], truth[0]]))
    assert (claimed[0] & claimed[1]).any()
    claimed = crf.refine_objects(image, np.stack([truth[0], truth[0]]), apart=True)
    assert not (claimed[0] & claimed[1]).any() and (claimed[0] | claimed[1]).any()


def test_scribbles_fill_the_photograph():
    image, truth = two_halves()
    scribbles = np.zeros_like(truth)
    scribbles[3:20, 5], scribbles[3:20, 25] = 1, 4
    refined = crf.refine_labels(
        image, scribbles, crf.SCRIBBLE_PARAMS, gt_prob=0.95, zero_unsure=True, num_iterations=10
    )
    np.testing.assert_array_equal(refined, truth)


def test_labels_of_one_class_or_none_need_no_crf():
    image, _ = two_halves()
    one = np.full((24, 32), 3, np.int32)
    one[2:4] = IGNORE_LABEL
    np.testing.assert_array_equal(crf.refine_labels(image, one), np.full((24, 32), 3))
    none = np.full((24, 32), IGNORE_LABEL)
    np.testing.assert_array_equal(crf.refine_labels(image, none), none)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: crf.unary_from_labels(np.array([0.5]), 2), "integers, got float64"),
        (lambda: crf.unary_from_labels(np.array([-1, 7]), 3), "labels hold -1, 7; .* 0 to 2"),
        (lambda: crf.unary_from_labels(np.array([4]), 3, zero_unsure=True), "hold 4; .* 1 to 3"),
        (lambda: crf.unary_from_labels(np.array([0]), 1), "at least 2 classes"),
        (lambda: crf.unary_from_labels(np.array([0]), 2, gt_prob=1), "above 0 and below 1"),
        (lambda: crf.refine_labels(photograph(), np.zeros((3, 4), int)), "same height and width"),
        (lambda: crf.refine_objects(photograph(), np.zeros((21, 23))), r"masks \[k, h, w\]"),
        (lambda: crf.refine_objects(*discs(), gt_prob=0.4), "above 1/2"),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence):
        call()


@pytest.fixture
def folders(tmp_path):
    """Three photographs with spoilt palette masks."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for i in range(3):
        image, labels = two_halves(seed=i)
        labels[:, 14 + i : 20] = 1
        Image.fromarray(image).save(images / f"{i}.png")
        picture = Image.fromarray(labels).convert("P")
        picture.putpalette([7, 8, 9] * 256)
        picture.save(masks / f"{i}.png")
    return images, masks


def refine(*paths, **options):
    refine_masks.main(refine_masks.Options(*paths, **options))


def times_of(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_folder_of_masks_is_refined_and_gone_on_with(folders, capsys):
    images, masks = folders
    output = masks.with_name("masks_refined")
    before = [path.read_bytes() for path in (*images.iterdir(), *masks.iterdir())]
    strong = {"crf_params": "scribbles", "gt_prob": 0.7}
    refine(images, masks, **strong)
    for path in output.iterdir():
        picture = Image.open(path)
        assert picture.mode == "P" and picture.getpalette()[:3] == [7, 8, 9]
        np.testing.assert_array_equal(np.asarray(picture), two_halves()[1])
    times = times_of(output)
    assert sorted(times) == ["0.png", "1.png", "2.png"]
    assert Image.open(masks.with_name("masks_refined_report") / "sheet.png").width > 900
    (output / "1.png").unlink()
    refine(images, masks, **strong)
    assert "2 of 3 masks are refined already" in capsys.readouterr().out
    again = times_of(output)
    assert {name for name in times if again[name] == times[name]} == {"0.png", "2.png"}
    with pytest.raises(UserError, match="gt_prob 0.7, and 0.9 was asked for.*--overwrite"):
        refine(images, masks, **strong | {"gt_prob": 0.9})
    refine(images, masks, overwrite=True, **strong | {"gt_prob": 0.9})
    assert "refined already" not in capsys.readouterr().out
    assert all(time > again[name] for name, time in times_of(output).items())
    assert before == [path.read_bytes() for path in (*images.iterdir(), *masks.iterdir())]


def test_a_bad_mask_does_not_stop_the_others(folders):
    images, masks = folders
    Image.new("RGB", (32, 24), "red").save(masks / "1.png")
    with pytest.raises(UserError, match=r"1 masks could not.*1.png is a colour picture"):
        refine(images, masks, num_photographs=0)
    assert sorted(p.name for p in masks.with_name("masks_refined").iterdir()) == ["0.png", "2.png"]


def test_a_mask_whose_input_has_changed_is_refined_again(folders, capsys):
    images, masks = folders
    options = {"num_photographs": 0, "crf_params": "scribbles", "gt_prob": 0.7}
    refine(images, masks, **options)
    Image.fromarray(two_halves(seed=7)[0]).save(images / "2.png")
    picture = Image.open(masks / "0.png").point(lambda label: 9 if label == 4 else label)
    picture.save(masks / "0.png")
    (masks / "._1.png").write_bytes(b"of a Mac")
    (masks / "notes.txt").write_text("")
    refine(images, masks, **options)
    told = capsys.readouterr().out
    assert "1 of 3 masks are refined already" in told
    assert "1 file is not used (1 .txt), such as notes.txt" in told
    assert set(np.unique(Image.open(masks.with_name("masks_refined") / "0.png"))) == {1, 9}


def drawn_objects() -> dict[str, np.ndarray]:
    """The right half of each photograph, a few columns too wide, and a corner that overlaps it."""
    y, x = np.mgrid[:24, :32]
    return {f"{i}": np.stack([x >= 12 + i, (y < 8) & (x < 20)]) for i in range(3)}


def refined_alone(images, name, found):
    """Each object by a binary CRF of its own."""
    image = np.asarray(Image.open(images / f"{name}.png"))
    return np.stack([crf.refine_labels(image, one.astype(np.uint8)) for one in found]).astype(bool)


def test_objects_are_refined_one_by_one_from_pngs_and_run_lengths(folders, tmp_path):
    images, _ = folders
    for name, found in drawn_objects().items():
        (tmp_path / "pngs" / name).mkdir(parents=True)
        for k, inside in enumerate(found):
            Image.fromarray(inside).save(tmp_path / "pngs" / name / f"{k}.png")
        (tmp_path / "runs").mkdir(exist_ok=True)
        things = [coco.with_mask({"predicted_iou": 0.9}, inside) for inside in found]
        (tmp_path / "runs" / f"{name}.json").write_text(json.dumps({"annotations": things}))
    for kind in ("pngs", "runs"):
        refine(images, tmp_path / kind)
    for name, found in drawn_objects().items():
        expected = refined_alone(images, name, found)
        pngs = (tmp_path / "pngs_refined" / name / f"{k}.png" for k in range(2))
        np.testing.assert_array_equal([np.asarray(Image.open(p)) > 0 for p in pngs], expected)
        content = json.loads((tmp_path / "runs_refined" / f"{name}.json").read_text())
        runs = [coco.draw("", thing, 24, 32) for thing in content["annotations"]]
        np.testing.assert_array_equal(runs, expected)
        assert content["annotations"][0]["predicted_iou"] == 0.9
        assert content["annotations"][0]["area"] == expected[0].sum()


def test_a_coco_json_comes_out_with_its_outlines_refined(folders, tmp_path, capsys):
    images, _ = folders
    outline = [[12, 0, 32, 0, 32, 24, 12, 24]]
    content = {
        "info": {"year": 2024},
        "images": [
            {"id": i + 5, "file_name": f"{i}.png", "height": 24, "width": 32} for i in range(3)
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": outline, "area": 1},
            {"id": 2, "image_id": 5, "category_id": 3, "segmentation": outline, "bbox": [0, 0, 1]},
            {"id": 3, "image_id": 7, "category_id": 4, "segmentation": []},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(content))
    refine(images, tmp_path / "set.json")
    told = capsys.readouterr().out
    assert "1 without an outline, which is left out, such as annotation 3" in told
    found = json.loads((tmp_path / "set_refined.json").read_text())
    assert all(found[key] == content[key] for key in ("info", "images", "categories"))
    assert [thing["id"] for thing in found["annotations"]] == [1, 2, 3]
    inside = np.arange(32) >= 12
    for thing, name in zip(found["annotations"], ("2", "0"), strict=False):
        given = np.broadcast_to(inside, (1, 24, 32))
        expected = refined_alone(images, name, given)[0]
        np.testing.assert_array_equal(COCO.decode(thing["segmentation"]), expected)
    assert found["annotations"][2]["area"] == 0
    refine(images, tmp_path / "set.json")
    assert "2 of 2 masks are refined already" in capsys.readouterr().out
    assert json.loads((tmp_path / "set_refined.json").read_text()) == found


def test_probabilities_are_refined_to_class_ids(folders, tmp_path):
    images, _ = folders
    probs = np.random.default_rng(0).dirichlet(np.ones(3), (24, 32)).astype(np.float32)
    (tmp_path / "probs").mkdir()
    np.save(tmp_path / "probs/1.npy", probs)
    refine(images, tmp_path / "probs")
    image = np.asarray(Image.open(images / "1.png"))
    expected = crf.refine(image, probs, num_iterations=5).argmax(-1)
    np.testing.assert_array_equal(Image.open(tmp_path / "probs_refined/1.png"), expected)


def test_masks_are_refined_on_the_host_of_a_tpu(folders, monkeypatch):
    found = []

    def refine_one(*_):
        found.append(jax.config.jax_default_device)
        return 0.0

    monkeypatch.setattr(refine_masks, "refine_one", refine_one)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    images, masks = folders
    jobs, _ = refine_masks.find_jobs(images, masks, masks)
    list(refine_masks.refine_all(refine_masks.Options(images, masks), jobs))
    assert set(found) == {jax.local_devices(backend="cpu")[0]}


def test_a_mask_without_a_photograph_is_named(folders):
    images, masks = folders
    (images / "2.png").unlink()
    with pytest.raises(UserError, match="no photograph for 1 masks, such as .*2.png"):
        refine(images, masks)


def degrade(labels, kind, rng):
    """Annotations as people make them in a hurry, seeded."""
    h, w = labels.shape
    if kind == "blocky":
        return labels[4::8, 4::8].repeat(8, 0).repeat(8, 1)[:h, :w]
    result = labels.copy()
    if kind == "dropped":
        for y, x in np.ndindex(-(-h // 12), -(-w // 12)):
            if rng.random() < 0.2:
                result[12 * y : 12 * y + 12, 12 * x : 12 * x + 12] = rng.choice(labels.ravel())
        return result
    for _ in range(3):  # dilated: each step a random half of the classes grows by a pixel
        for c in rng.permutation(np.unique(labels))[: len(np.unique(labels)) // 2 + 1]:
            grown = ndimage.binary_dilation(result == c)
            result[grown & (result != IGNORE_LABEL)] = c
    return result


@pytest.mark.usefixtures("users_compilation")
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / "camvid").is_dir(), reason="DEEPLAB_JAX_DATA names no folder with camvid"
)
@pytest.mark.parametrize("kind", ["dilated", "dropped", "blocky"])
def test_degraded_camvid_masks_gain_mean_iou(kind):
    names = (DATA / "camvid/ImageSets/Segmentation/val.txt").read_text().split()[::10]
    gains = []
    for seed in range(3):
        rng, matrices = np.random.default_rng(seed), np.zeros((2, 12, 12), int)
        for name in names:
            image = np.array(Image.open(DATA / f"camvid/JPEGImages/{name}.jpg").convert("RGB"))
            truth = np.array(Image.open(DATA / f"camvid/SegmentationClass/{name}.png"))
            spoilt = np.where(truth == IGNORE_LABEL, IGNORE_LABEL, degrade(truth, kind, rng))
            spoilt = spoilt.astype(np.uint8)
            both = spoilt, crf.refine_labels(image, spoilt)
            for matrix, found in zip(matrices, both, strict=True):
                classes = np.minimum(found, 11)  # 255, unknown, is wrong here
                matrix += metrics.confusion_matrix(truth, classes, num_classes=12)
        before, after = (np.nanmean(metrics.iou(matrix)[:11]) for matrix in matrices)
        gains.append(after - before)
        print(f"{kind} seed {seed}: {before:.4f} -> {after:.4f}")
    print(f"{kind}: gain {np.mean(gains):.4f}, spread {np.std(gains, ddof=1):.4f}")
    assert np.mean(gains) > 0
