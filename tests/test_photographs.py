"""Kinds of photographs and masks: what each becomes, or why it is refused."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from drawn_folder import draw_folder, fault, open_dataset, png, turned, write_mask
from PIL import Image
from save_faults import truncate

from deeplab_jax.data import images, masks
from deeplab_jax.types import UserError

H, W = 24, 30
RAMP = (np.add.outer(np.arange(H), np.arange(W)) * 255 // (H + W - 2)).astype(np.uint8)
COLOURS = np.stack([RAMP, 255 - RAMP, np.full_like(RAMP, 60)], -1)


def read_both_ways(path: Path, value_range=None) -> np.ndarray:
    """What prediction reads, which must be what training reads, to the bit."""
    image = images.read(path, value_range=value_range)
    data, size = images.to_record(path, value_range=value_range)
    np.testing.assert_array_equal(image, np.asarray(Image.open(io.BytesIO(data))))
    assert image.shape == (*size, 3)
    return image


LOSSLESS = {
    "a.png": {},
    "a.PNG": {"format": "PNG"},
    "a.tif": {},
    "a.TIFF": {"format": "TIFF", "compression": "tiff_lzw"},
    "a.bmp": {},
    "a.webp": {"lossless": True},
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_photographs_keep_their_pixels_in_training_and_prediction(tmp_path, name):
    Image.fromarray(COLOURS).save(tmp_path / name, **LOSSLESS[name])
    np.testing.assert_array_equal(read_both_ways(tmp_path / name), COLOURS)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp", "a.heic", "a.HEIF"])
def test_lossy_photographs_come_close_in_training_and_prediction(tmp_path, name):
    if "hei" in name.lower():
        pytest.importorskip("pillow_heif")
    Image.fromarray(COLOURS).resize((W * 4, H * 4)).save(tmp_path / name, quality=95)
    image = read_both_ways(tmp_path / name)
    expected = np.asarray(Image.fromarray(COLOURS).resize((W * 4, H * 4)))
    assert np.abs(image.astype(int) - expected).mean() < 4


def test_a_heic_photograph_without_the_extra_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setattr(images, "pillow_heif", None)
    monkeypatch.setattr(images, "FORMATS", ("JPEG", "PNG"))
    with pytest.raises(UserError, match=r"a\.heic is a HEIC .* pip install 'deeplab_jax\[heic\]'"):
        images.read(tmp_path / "a.heic")


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("P", "png"), ("CMYK", "tif"), ("RGBA", "png"), ("1", "png")]
)
def test_other_colour_modes_become_rgb(tmp_path, mode, suffix):
    picture = Image.fromarray(COLOURS).convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_both_ways(tmp_path / f"a.{suffix}"), picture.convert("RGB"))


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_a_photograph_stands_upright_by_its_exif_orientation(tmp_path, suffix):
    bright_top = np.zeros((40, 60, 3), np.uint8)
    bright_top[:20] = 250
    stored = np.rot90(bright_top)  # orientation 6: turn it right to see it upright
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=turned(6))
    image = read_both_ways(path).astype(int)
    assert image.shape == (40, 60, 3)
    assert np.abs(image - bright_top).mean() < 5


def test_the_first_photograph_of_an_mpo_is_read(tmp_path):
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(read_both_ways(tmp_path / "a.jpg").astype(int) - (255, 0, 0)).max() < 6


def test_truncated_photographs_of_every_kind_are_refused(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for suffix in ("jpg", "png", "tif", "bmp", "webp"):
        path = tmp_path / f"a.{suffix}"
        noise.save(path)
        truncate(path)
        for read in (images.read, images.to_record):
            with pytest.raises(UserError, match=rf"a\.{suffix} is (damaged|no picture)"):
                read(path)


GREY_12_BIT = RAMP.astype(np.uint16) * 16
DEEP = {
    "grey of 16 bits": ("a.png", GREY_12_BIT),
    "grey of 12 bits in a TIFF of 16": ("a.tif", GREY_12_BIT),
    "colours of 16 bits": ("a.png", COLOURS.astype(np.uint16) * 16),
    "colours of 16 bits in a TIFF": ("a.tif", COLOURS.astype(np.uint16) * 16),
    "floating-point grey": ("a.tif", RAMP.astype(np.float32) * 16),
}


def write_deep(path: Path, values: np.ndarray):
    if path.suffix == ".tif":
        colour = "rgb" if values.ndim == 3 else "minisblack"
        tifffile.imwrite(path, values, photometric=colour)
    else:
        cv2.imwrite(str(path), values[..., ::-1] if values.ndim == 3 else values)


@pytest.mark.parametrize("kind", DEEP)
def test_a_range_becomes_black_to_white_and_without_one_what_suits_the_file_is_told(tmp_path, kind):
    name, values = DEEP[kind]
    write_deep(tmp_path / name, values)
    for read in (images.read, images.to_record):
        with pytest.raises(UserError, match=r"--data\.range LOW HIGH .* such as 0 40(95|80)"):
            read(tmp_path / name)
    image = read_both_ways(tmp_path / name, (0, 4080))
    expected = COLOURS if values.ndim == 3 else np.repeat(RAMP[..., None], 3, -1)
    np.testing.assert_array_equal(image, expected)
    brighter = read_both_ways(tmp_path / name, (0, 2040))
    np.testing.assert_array_equal(brighter, np.minimum(expected * 2.0, 255))


def test_a_range_leaves_photographs_of_8_bits_alone(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_both_ways(tmp_path / "a.png", (0, 65535)), COLOURS)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_deep_photograph_stands_upright_as_others_do(tmp_path, turn):
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=turned(turn))
    Image.fromarray(GREY_12_BIT).save(tmp_path / "b.png", exif=turned(turn))
    np.testing.assert_array_equal(
        read_both_ways(tmp_path / "b.png", (0, 4080)), read_both_ways(tmp_path / "a.png")
    )


@pytest.mark.parametrize("bands", [2, 5, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_of_other_bands_is_refused_and_not_cut_to_three(tmp_path, bands, dtype):
    values = np.zeros((H, W, bands), dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    for read in (images.read, images.to_record):
        with pytest.raises(UserError, match=f"a TIFF of {bands} bands .* --data.channels"):
            read(tmp_path / "a.tif")


def test_a_stack_of_pages_is_refused_and_a_preview_page_is_not(tmp_path):
    pages = [Image.fromarray(COLOURS), Image.fromarray(COLOURS).resize((W // 2, H // 2))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_both_ways(tmp_path / "a.tif"), COLOURS)
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=[pages[0], pages[0]])
    with pytest.raises(UserError, match="a TIFF of 3 pages of one size"):
        images.read(tmp_path / "a.tif")


def test_a_range_is_part_of_what_is_prepared(tmp_path):
    root = draw_folder(tmp_path / "pets")
    Image.fromarray(GREY_12_BIT).save(root / "JPEGImages/a.jpg", format="PNG")
    assert "--data.range LOW HIGH" in fault(root)
    first, second = (open_dataset(root, range=(0, high)).splits["train"] for high in (4080, 2040))
    np.testing.assert_array_equal(first[1]["image"][..., 0], RAMP)
    np.testing.assert_array_equal(second[1]["image"][..., 0], np.minimum(RAMP * 2.0, 255))


LABELS = np.random.default_rng(0).choice([0, 1, 2, 255], (H, W)).astype(np.uint8)
SMALL = np.random.default_rng(1).integers(0, 3, (H, W)).astype(np.uint8)


def read_mask(path: Path, **options) -> np.ndarray:
    return masks.read(path, masks.Rules(3, **options))


MASKS = {
    "a.png": {},
    "a.PNG": {"format": "PNG"},
    "a.tif": {},
    "a.tiff": {"compression": "tiff_lzw"},
    "a.bmp": {},
    "a.gif": {},
    "a.pgm": {},
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("kind", ["grey", "palette", "RGB of equal channels", "RGBA"])
def test_lossless_masks_of_every_kind_hold_the_same_class_ids(tmp_path, name, kind):
    picture = Image.fromarray(LABELS)
    if kind == "palette":
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    elif kind != "grey":
        picture = picture.convert(kind[:4].strip())
    unable = {".pgm": ("palette", "RGBA"), ".gif": ("RGB of equal channels", "RGBA")}
    if kind in unable.get(Path(name).suffix, ()):
        pytest.skip("the format has no such pictures")
    picture.save(tmp_path / name, optimize=False, **MASKS[name])
    np.testing.assert_array_equal(read_mask(tmp_path / name), LABELS)


def test_black_and_white_gifs_are_0_and_1_as_carvana_has_them(tmp_path):
    write_mask(tmp_path / "a.gif", SMALL % 2, [0, 0, 0, 255, 255, 255])
    np.testing.assert_array_equal(read_mask(tmp_path / "a.gif"), SMALL % 2)
    write_mask(tmp_path / "a.gif", np.ones_like(SMALL), [0, 0, 0, 255, 255, 255])
    assert (read_mask(tmp_path / "a.gif") == 1).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif"])
def test_lossy_masks_alone_are_refused_as_lossy(tmp_path, name):
    options = {"compression": "jpeg"} if name == "a.tif" else {}
    Image.fromarray(LABELS).save(tmp_path / name, **options)
    with pytest.raises(UserError, match="which loses class ids; save masks as PNG"):
        read_mask(tmp_path / name)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_masks_of_few_bits_keep_their_values(tmp_path, bits):
    """Pillow spreads 2 and 4 bits over 0 to 255."""
    values = SMALL % 2**bits
    padded = np.zeros((H, -(-W * bits // 8) * 8 // bits), np.uint8)
    padded[:, :W] = values
    shifts = np.arange(8 // bits)[::-1] * bits
    packed = (padded.reshape(H, -1, 8 // bits) << shifts).sum(-1).astype(np.uint8)
    rows = np.pad(packed, ((0, 0), (1, 0))).tobytes()
    (tmp_path / "a.png").write_bytes(png(W, H, bits, 0, rows))
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), values)


def test_masks_of_deep_colours_or_other_bands_are_refused_and_not_cut(tmp_path):
    deep = np.repeat(SMALL[..., None].astype(np.uint16), 3, -1)
    for name in ("a.png", "a.tif"):
        write_deep(tmp_path / name, deep)
        with pytest.raises(UserError, match="of more than 8 bits a channel; save masks with 8"):
            read_mask(tmp_path / name)
    bands = np.zeros((H, W, 5), np.uint8)
    tifffile.imwrite(tmp_path / "b.tif", bands, photometric="rgb", planarconfig="contig")
    with pytest.raises(UserError, match="a TIFF of 5 bands"):
        read_mask(tmp_path / "b.tif")
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((5, H, W), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="a TIFF of 5 pages"):
        read_mask(tmp_path / "c.tif")


def test_a_mask_in_which_0_is_white_keeps_the_stored_values(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", LABELS, photometric="miniswhite")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), LABELS)
    rows = "\n".join(" ".join(map(str, row)) for row in SMALL % 2)
    (tmp_path / "a.pbm").write_text(f"P1\n{W} {H}\n{rows}\n")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.pbm"), SMALL % 2)


@pytest.mark.parametrize("white", [2, 20, 254])
def test_a_pgm_keeps_its_values_whatever_it_calls_white(tmp_path, white):
    (tmp_path / "a.pgm").write_bytes(b"P5\n# ours\n%d %d\n%d\n" % (W, H, white) + SMALL.tobytes())
    np.testing.assert_array_equal(read_mask(tmp_path / "a.pgm"), SMALL)


BLACK_RED, RED_BLACK = [0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0]


@pytest.fixture
def contradicting(tmp_path):
    """Two masks that look alike, with palettes the other way round, in train; one in val."""
    root = draw_folder(tmp_path / "pets")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    write_mask(root / "SegmentationClass/a.png", SMALL % 2, BLACK_RED)
    write_mask(root / "SegmentationClass/b.png", 1 - SMALL % 2, RED_BLACK)
    write_mask(root / "SegmentationClass/d.png", 1 - SMALL % 2, RED_BLACK)
    return root


def test_palettes_that_contradict_each_other_are_a_fault(contradicting):
    told = fault(contradicting)
    assert "b.png shows index 0 of its palette as the colour 255 0 0" in told
    assert "a.png as the colour 0 0 0; write mapping.txt" in told


def test_palettes_are_compared_across_splits(contradicting):
    (contradicting / "ImageSets/Segmentation/train.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"d\.png shows index 0 of its palette"):
        open_dataset(contradicting, ["train", "val"])


@pytest.mark.parametrize("by_colour", [True, False])
def test_a_mapping_says_whether_colours_or_indices_count(contradicting, by_colour):
    colours = "#000000 0\n#ff0000 1\n"
    (contradicting / "mapping.txt").write_text(colours if by_colour else "0 0\n1 1\n")
    source = open_dataset(contradicting).splits["train"]
    second = SMALL % 2 if by_colour else 1 - SMALL % 2
    np.testing.assert_array_equal(source[0]["labels"], SMALL % 2)
    np.testing.assert_array_equal(source[1]["labels"], second)


def test_unused_colours_of_palettes_may_differ(contradicting):
    write_mask(contradicting / "SegmentationClass/b.png", SMALL % 2, [*BLACK_RED, 1, 2, 3])
    source = open_dataset(contradicting).splits["train"]
    np.testing.assert_array_equal(source[1]["labels"], SMALL % 2)
