"""predict.py: nothing is overwritten, a broken photograph costs no other, a command goes on."""

import os
import signal
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tifffile
from drawn_folder import png
from drawn_voc import draw_voc
from PIL import Image as PILImage
from runs_with_faults import start_script, wait_until
from save_faults import truncate
from tiny_networks import CLASS_NAMES, write_weights

from deeplab_jax import predictions
from deeplab_jax.data import images, public
from deeplab_jax.data.labels import LabelMapping
from deeplab_jax.types import IGNORE_LABEL, VOC_CLASS_NAMES, UserError


@pytest.fixture(scope="module")
def weights(tmp_path_factory, draw_variables):
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", draw_variables)


def draw(path: Path, seed: int = 0, size: tuple[int, int] = (20, 24)) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """Six photographs of one size."""
    for i in range(6):
        draw(tmp_path / "photos" / f"p{i}.png", seed=i)
    return tmp_path / "photos"


@pytest.fixture
def predict(script):
    return partial(script, "predict")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("p[0-9]*"))}


def done(folder: Path) -> list[str]:
    """Photographs whose label maps are there."""
    maps = folder.glob("*.png")
    return sorted(path.stem for path in maps if not path.name.startswith("."))


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_photographs_are_never_overwritten(predict, weights, photos, capsys, overwrite):
    """However their folder is spelt, and through links."""
    Path("link").symlink_to(photos)
    for kind in ("symlink_to", "hardlink_to"):
        Path(kind).mkdir()
        getattr(Path(kind, "p3.png"), kind)(photos / "p3.png")
    before = contents(photos)
    for output in (photos, photos / "../photos", "link", "symlink_to", "hardlink_to"):
        for named in ([photos], sorted(photos.glob("*.png"))):
            assert predict(weights, *named, "--output", output, *overwrite) == 2
            assert "choose another --output" in capsys.readouterr().err
            assert contents(photos) == before


def test_the_files_of_the_run_are_never_overwritten(predict, weights, capsys):
    curves, other = draw(Path("run/curves.png")), draw(Path("curves.jpg"))
    with pytest.raises(ValueError, match="would overwrite"):
        predictions.refuse_overwriting([curves], [curves, other])
    params = draw(Path("run/x.png"))  # any file that is read
    options = ("--output", "run", "--crf-params", params)
    assert predict(weights, draw(Path("x.jpg")), *options) == 2
    assert "would overwrite" in capsys.readouterr().err


def test_a_broken_photograph_is_named_and_the_others_are_predicted(
    predict, weights, photos, capsys
):
    for i in range(6, 8):
        draw(photos / f"p{i}.png", seed=i)
    cut_off, empty, text, huge, gone = broken = sorted(photos.glob("*.png"))[:5]
    truncate(cut_off)
    empty.write_bytes(b"")
    text.write_text("no photograph")
    huge.write_bytes(png(60_000, 60_000, 8, 2, b""))
    gone.unlink()
    gone.symlink_to("/nowhere/photograph.png")
    assert predict(weights, photos, "--output", "out", "--workers", 2) == 2
    err = capsys.readouterr().err
    told = [line for line in err.splitlines() if "left out:" in line]
    assert len(told) == 5 and all(any(path.name in line for line in told) for path in broken)
    assert "5 of 8 photographs could not be read" in err and "Traceback" not in err
    assert done(Path("out")) == ["p5", "p6", "p7"]


def test_the_same_command_goes_on_with_what_is_missing_or_mended(predict, weights, photos, capsys):
    broken = photos / "p1.png"
    broken.write_bytes(b"")
    assert predict(weights, photos, "--output", "out") == 2
    before, dated = contents(Path("out")), times(Path("out"))
    for name in ("p2.png", "p4_overlay.jpg"):
        (Path("out") / name).unlink()
    draw(broken, seed=1)
    assert predict(weights, photos, "--output", "out") == 0
    assert "3 of 6 photographs are done" in capsys.readouterr().out
    after = contents(Path("out"))
    assert all(after[name] == data for name, data in before.items() if not name.endswith("json"))
    again = {name for name, time in times(Path("out")).items() if time != dated.get(name)}
    assert again == {f"p{i}{end}" for i in (1, 2, 4) for end in (".png", "_overlay.jpg")}


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (None, ["--flip"], "predictions with flip False, and True was asked for"),
        (None, ["--probs"], "predictions with probs False"),
        ("other weights", [], "predictions with weights of the fingerprint"),
        ("a changed photograph", [], "p0.png has changed since"),
        ("no record", [], "no predictions.json beside it"),
        ("a torn record", [], "no predictions.json beside it"),
    ],
)
def test_another_command_in_the_folder_is_refused_and_overwrite_does_all_again(
    predict, weights, photos, capsys, tmp_path, draw_variables, change, arguments, sentence
):
    assert predict(weights, photos, "--output", "out") == 0
    if change == "other weights":
        weights = write_weights(tmp_path / "other.safetensors", draw_variables, scale=0.9)
    elif change == "a changed photograph":
        draw(photos / "p0.png", seed=77)
    elif change == "no record":
        Path("out/predictions.json").unlink()
    elif change == "a torn record":
        record = Path("out/predictions.json")
        record.write_text(record.read_text()[:50])
    before = contents(Path("out"))
    assert predict(weights, photos, "--output", "out", *arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err and "--overwrite" in err and err.count("error:") == 1
    assert contents(Path("out")) == before
    dated = times(Path("out"))
    assert predict(weights, photos, "--output", "out", *arguments, "--overwrite") == 0
    assert not any(dated.get(n) == t for n, t in times(Path("out")).items())
    assert predict(weights, photos, "--output", "out", *arguments) == 0


def test_other_photographs_may_follow_and_overwrite_removes_what_is_not_named(
    predict, weights, photos
):
    first, second = photos / "p0.png", photos / "p1.png"
    assert predict(weights, first, "--output", "out") == 0
    before = times(Path("out"))
    assert predict(weights, second, "--output", "out") == 0
    after = times(Path("out"))
    assert {"p0.png", "p0_overlay.jpg", "p1.png", "p1_overlay.jpg"} == set(after)
    assert all(after[name] == before[name] for name in ("p0.png", "p0_overlay.jpg"))
    assert predict(weights, second, "--output", "out", "--overwrite") == 0
    assert set(contents(Path("out"))) == {"p1.png", "p1_overlay.jpg", "predictions.json"}


def test_what_is_refused_leaves_everything_as_it_was(predict, weights, photos, capsys):
    long, other = draw(Path(f"{246 * 'a'}.png")), draw(Path("others/p0.png"), seed=5)
    note = draw(Path("out") / "p3_overlay.jpg")
    first = ("--output", "first")
    assert predict(weights, photos / "p0.png", *first) == 0
    capsys.readouterr()
    before = [contents(Path(folder)) for folder in ("out", "first")]
    for words, sentence in [
        ([photos, "--output", "out"], "p3_overlay.jpg exists"),
        ([other, *first], "p0.png is the result of"),  # another photograph of its name
        (first, "no photograph"),
        ([long], "is too long for results beside it"),
    ]:
        assert predict(weights, *words) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.count("error:") == 1
    with predictions.hold(Path("first")):
        assert predict(weights, photos, *first) == 2
    assert "another process is writing" in capsys.readouterr().err
    assert [contents(Path(folder)) for folder in ("out", "first")] == before
    assert note.exists() and not Path("predictions").exists()


def test_a_killed_command_goes_on(predict, weights, photos, tmp_path, capsys):
    waiting = photos / "p4.png"
    photograph = waiting.read_bytes()
    waiting.unlink()
    os.mkfifo(waiting)  # whoever reads it waits for ever
    output = tmp_path / "out"
    words = (weights, photos, "--output", output, "--workers", 1)
    process = start_script("predict.py", *words, cwd=tmp_path)
    wait_until(lambda: len(done(output)) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = times(output)
    finished = len(done(output))
    assert 2 <= finished < 6
    waiting.unlink()
    waiting.write_bytes(photograph)
    (output / ".partial-p5.png").write_bytes(b"half of a picture")
    assert predict(*words) == 0
    assert "photographs are done" in capsys.readouterr().out
    assert {name: time for name, time in before.items() if name.endswith(".png")}.items() <= (
        times(output).items()
    )
    assert predict(weights, photos, "--output", tmp_path / "at once") == 0
    assert contents(output) == contents(tmp_path / "at once")


def test_a_photograph_of_16_bits_needs_a_range_and_is_then_seen_as_one_of_8(
    predict, weights, tmp_path, capsys
):
    grey = (np.add.outer(np.arange(20), np.arange(24)) * 6).astype(np.uint16)
    (tmp_path / "deep").mkdir()
    PILImage.fromarray(grey * 16).save(tmp_path / "deep/a.png")
    PILImage.fromarray(grey.astype(np.uint8)).save(tmp_path / "b.png")
    assert predict(weights, tmp_path / "deep") == 2
    assert "--data.range LOW HIGH (or --range), such as 0 4095" in capsys.readouterr().err
    seen = tmp_path / "seen"
    assert predict(weights, tmp_path / "deep", "--range", 0, 4080, "--output", seen, "--probs") == 0
    assert predict(weights, tmp_path / "b.png", "--output", seen / "8", "--probs") == 0
    np.testing.assert_array_equal(np.load(seen / "a_probs.npy"), np.load(seen / "8/b_probs.npy"))


def test_a_georeferenced_photograph_keeps_its_place_in_every_format(predict, weights, tmp_path):
    tags = {33550: (10.0, 10.0, 0.0), 33922: (0.0, 0.0, 0.0, 5e5, 4e6, 0.0), 34737: "WGS 84|"}
    tags |= {34735: (1, 1, 0, 1, 1024, 0, 1, 1), 34736: 6378137.0}
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    PILImage.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo=tags)
    for maps in ("npy", "png", "tif"):
        options = ("--probs", "--entropy", "--maps", maps, "--output", maps)
        assert predict(weights, tmp_path / "a.tif", *options) == 0
    labels = np.asarray(PILImage.open("npy/a.png"))
    np.testing.assert_array_equal(PILImage.open("npy/a.tif"), labels)
    probs, unsure = np.load("npy/a_probs.npy"), np.load("npy/a_entropy.npy")
    np.testing.assert_array_equal(probs.argmax(-1), labels)
    positive = np.where(probs > 0, probs, 1).astype(float)
    expected = -(positive * np.log(positive)).sum(-1) / np.log(len(CLASS_NAMES))
    np.testing.assert_allclose(unsure, expected, atol=1e-6)
    deep = np.asarray(PILImage.open("png/a_probs.png")).reshape(len(CLASS_NAMES), 20, 24) / 65535
    np.testing.assert_allclose(np.moveaxis(deep, 0, -1), probs, atol=1 / 65535)
    np.testing.assert_allclose(
        np.asarray(PILImage.open("png/a_entropy.png")) / 65535, unsure, atol=1 / 65535
    )
    np.testing.assert_array_equal(np.moveaxis(tifffile.imread("tif/a_probs.tif"), 0, -1), probs)
    np.testing.assert_array_equal(tifffile.imread("tif/a_entropy.tif"), unsure)
    for name in ("npy/a.tif", "tif/a_probs.tif", "tif/a_entropy.tif"):
        assert images.read_geo_tags(Path(name)) == tags, name


def test_masks_for_vocs_server_are_of_the_list_and_of_the_photographs_sizes(
    predict, tmp_path, draw_variables
):
    devkit = draw_voc(tmp_path / "voc") / "VOCdevkit/VOC2012"
    (devkit / "ImageSets/Segmentation/test.txt").write_text("2008_b\n2008_a\n")
    for name, size in (("2008_a", (20, 24)), ("2008_b", (30, 17))):
        draw(devkit / "JPEGImages" / f"{name}.jpg", size=size)
    weights = write_weights(tmp_path / "voc.safetensors", draw_variables, VOC_CLASS_NAMES)
    options = ("--submission", "voc", "--root", tmp_path / "voc", "--output", "out")
    assert predict(weights, *options) == 0
    with tarfile.open("out/results.tar") as archive:
        place = "results/VOC2012/Segmentation/comp6_test_cls"
        assert archive.getnames() == [f"{place}/2008_b.png", f"{place}/2008_a.png"]
        pictures = [PILImage.open(archive.extractfile(name)) for name in archive.getnames()]
        assert [picture.size for picture in pictures] == [(17, 30), (24, 20)]
        assert {picture.mode for picture in pictures} == {"P"}
        assert pictures[0].getpalette()[3:6] == [128, 0, 0]
    assert not list(Path("out").rglob("*overlay*"))
    assert predict(weights, *options, "photo.jpg") == 2  # the list says which photographs


def test_masks_for_cityscapes_server_hold_its_label_ids(predict, tmp_path, draw_variables):
    root = tmp_path / "cityscapes"
    (root / "gtFine/test").mkdir(parents=True)
    draw(root / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    weights = write_weights(
        tmp_path / "city.safetensors", draw_variables, tuple(public.CITYSCAPES.values())
    )
    options = ("--submission", "cityscapes", "--root", root)
    assert predict(weights, *options, "--output", "raw") == 0
    raw = np.asarray(PILImage.open("raw/test/berlin_000000_000019_leftImg8bit.png"))
    assert set(np.unique(raw)) <= set(public.CITYSCAPES)
    assert raw.shape == (20, 24)
    with zipfile.ZipFile("raw/results.zip") as archive:
        assert archive.namelist() == ["berlin_000000_000019_leftImg8bit.png"]


def test_a_server_is_refused_masks_of_other_classes(predict, tmp_path, weights, capsys):
    (tmp_path / "gtFine").mkdir()
    draw(tmp_path / "leftImg8bit/test/berlin/berlin_0_0_leftImg8bit.png")
    status = predict(weights, "--submission", "cityscapes", "--root", tmp_path, "--output", "x")
    assert status == 2
    assert "wants its 19 classes" in capsys.readouterr().err


def test_competition_5_of_voc_has_a_folder_of_its_own(tmp_path):
    (paths,) = predictions.submission("voc", tmp_path, ["a"], split="test", competition=5)
    assert paths.labels.parent.name == "comp5_test_cls"


def test_classes_are_written_as_the_ids_or_colours_that_they_were_read_from():
    """7 is road, 33 bicycle: the numbers of the official labels."""
    classes = {raw: i for i, raw in enumerate(public.CITYSCAPES)}
    mapping = LabelMapping(Path("x"), of_colours=False, classes=classes, others=IGNORE_LABEL)
    found = mapping.encode(np.array([[0, 18, 5]]), 19)
    assert found.dtype == np.uint8 and found.tolist() == [[7, 33, 17]]
    colours = {0x800000: 0, 0x00FF10: 1}
    mapping = LabelMapping(Path("x"), of_colours=True, classes=colours, others=None)
    assert mapping.encode(np.array([[1, 0]]), 2).tolist() == [[[0, 255, 16], [128, 0, 0]]]
    mapping = LabelMapping(Path("x"), of_colours=False, classes={3: 1, 9: 2, 4: 1}, others=0)
    labels = np.array([[0, 1, 2]])
    np.testing.assert_array_equal(mapping.decode(Path("x"), mapping.encode(labels, 3)), labels)
    mapping = LabelMapping(Path("mapping.txt"), of_colours=False, classes={3: 1}, others=None)
    with pytest.raises(UserError, match="mapping.txt lists nothing that leads to class 0"):
        mapping.encode(np.zeros((1, 1), int), 2)
