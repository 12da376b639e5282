"""The reader of .pth files builds tensors and runs nothing."""

import os
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import formats, pth

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.array(3, np.int64),
    "c": np.arange(4, dtype=np.float64).reshape(2, 2).T,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


@pytest.mark.parametrize("write", [weight_files.write_pth, weight_files.write_legacy_pth])
def test_zip_and_legacy_files_give_the_same_arrays_transposed_or_not(path, write):
    found = pth.read(write(path, ARRAYS))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


class Bomb:
    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_names_a_function_is_refused_and_not_run(path, protocol):
    crater = path.parent / "crater"
    pickled = pickle.dumps({"a": Bomb(crater)}, protocol)
    weight_files.write_pth(path, ARRAYS, pickled=pickled)
    with pytest.raises(UserError, match=r"asks to run \w+.mkdir"):
        formats.read(path)
    assert not crater.exists()


REPEATED = b"K\x01" + b"".join(b"q%c0h%ch%c\x86" % (i, i, i) for i in range(60))
"""A tuple of itself twice, 60 deep: 2**60 numbers to hash or to print."""
BOMBS = {
    "many bytes": (b"\x80\x02" + b"]" * 2**22 + b".", "more than 4194304 bytes"),
    "many objects": (b"\x80\x02" + b"}" * 10**6 + b".", "no dictionary of tensors"),
    "a hash of 2**60 steps": (b"\x80\x02}" + REPEATED + b"K\x01s.", "no dictionary of tensors"),
    "a storage's key of 2**60 letters": (
        b"\x80\x02(%sctorch\nFloatStorage\n%sNK\x06tQ." % (weight_files.text("storage"), REPEATED),
        "damaged",
    ),
    "a memo of 2**31 places": (b"\x80\x02}r\xff\xff\xff\x7f.", "no dictionary of tensors"),
    "text of 2**60 letters": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "damaged"),
    "a byte array of 2**40": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "damaged"),
    "lists in lists": (b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".", "no dictionary"),
    "a dictionary in itself": (
        b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.",
        "model is no tensor",
    ),
    "a class of the process": (b"\x80\x02\x82\x01.", "damaged"),
    "no end": (b"\x80\x02", "damaged"),
    "a number": (b"\x80\x02K\x01.", "no dictionary of tensors"),
    "a number by name": (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "a is no tensor"),
    "a changed builder": (
        b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00xK\x01s\x86b.",
        "no dictionary of tensors",
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_pickle_bombs_are_refused(path, bomb):
    pickled, part = BOMBS[bomb]
    weight_files.write_pth(path, ARRAYS, pickled=pickled)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=part) as error:
        formats.read(path)
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400e3  # KiB
    assert not hasattr(pth.BUILDERS["collections.OrderedDict"], "x")


def tensor_pickle(shape, strides, *, size: int = 6, offset: int = 0) -> bytes:
    head = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(("
    kept = weight_files.text("storage") + b"ctorch\nFloatStorage\n" + weight_files.text("0")
    kept += weight_files.text("cpu") + weight_files.number(size) + b"tQ"
    view = weight_files.number(offset) + weight_files.numbers(shape) + weight_files.numbers(strides)
    return head + kept + view + b"tRs."


@pytest.mark.parametrize(
    ("shape", "strides", "options", "part"),
    [
        ((2, 3), (3, 1), {"offset": 1}, "outside of its storage"),
        ((2, 3), (30000, 1), {}, "outside of its storage"),
        ((2, 3), (-3, 1), {}, "damaged"),
        ((100_000, 100), (0, 0), {}, "outside of its storage"),
        ((3, 2), (0, 1), {}, "outside of its storage"),
        ((2, 3), (3, 1), {"size": 7}, "storage 0 of 7 numbers has 24 bytes"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(path, shape, strides, options, part):
    array = np.arange(6, dtype=np.float32)
    pickled = tensor_pickle(shape, strides, **options)
    weight_files.write_pth(path, {"a": array}, pickled=pickled)
    with pytest.raises(UserError, match=part):
        formats.read(path)


def test_a_wrong_checksum_is_noticed(path):
    weight_files.write_pth(path, {"a": ARRAYS["a"]})
    data = path.read_bytes()
    place = data.index(ARRAYS["a"].tobytes()) + 20
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(UserError, match="Bad CRC-32"):
        formats.read(path)


@pytest.mark.parametrize("write", [weight_files.write_pth, weight_files.write_legacy_pth])
def test_a_file_cut_anywhere_is_refused(path, write):
    whole = write(path, {"a": ARRAYS["a"]}).read_bytes()
    for length in range(4, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            formats.read(path)


def test_a_compressed_zip_is_refused(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(UserError, match="compressed"):
        formats.read(path)


def flip(rng, data: bytes) -> bytes:
    """Changes, drops, doubles or cuts at a few places."""
    for _ in range(rng.integers(1, 6)):
        place, length = int(rng.integers(len(data))), int(rng.integers(1, 20))
        end = place + length
        data = [
            data[:place] + bytes(rng.integers(256, size=1, dtype=np.uint8)) + data[place + 1 :],
            data[:place] + data[end:],
            data[:end] + data[place:],
            data[: max(place, 30)],
        ][rng.integers(4)]
    return data


@pytest.mark.parametrize("kind", ["zip", "legacy", "caffe"])
def test_damaged_files_are_read_or_refused_in_one_sentence(path, kind):
    rng = np.random.default_rng(0)
    kernel = np.ones((4, 3, 1, 1), np.float32)
    write = {"zip": weight_files.write_pth, "legacy": weight_files.write_legacy_pth}
    if kind == "caffe":
        whole = weight_files.layer("conv1", "Convolution", [kernel], dilation=2)
    else:
        whole = write[kind](path, {"a": kernel, "b": ARRAYS["b"]}).read_bytes()
    for _ in range(400):
        path.write_bytes(flip(rng, whole))
        try:
            formats.read(path)
        except UserError as error:
            assert "\n" not in str(error)
