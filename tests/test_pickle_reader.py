"""The reader of .pth files builds tensors and runs nothing."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import pickles, pth

ARRAYS = {
    "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "b": np.array(3, np.int64),
    "c": np.arange(4, dtype=np.float64).reshape(2, 2).T,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


@pytest.mark.parametrize("write", [weight_files.write_pth, weight_files.write_legacy_pth])
def test_zip_and_legacy_files_give_the_same_arrays(path, write):
    stored = {name: np.ascontiguousarray(array) for name, array in ARRAYS.items()}
    stored["b"] = stored["b"].reshape(())
    found = pth.read(write(path, stored))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_strides_of_a_transposed_tensor_are_kept(path):
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
    weight_files.write_pth(path, {"a": transposed})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "archive/data.pkl", weight_files.state_dict({"a": transposed}, legacy=False)
        )
        archive.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    np.testing.assert_array_equal(pth.read(path)["a"], transposed)


def test_weights_are_found_beside_an_epoch(path):
    inner = weight_files.state_dict({"a": ARRAYS["a"]}, legacy=False)[2:-1]
    wrapped = (
        b"\x80\x02}("
        + weight_files.text("epoch")
        + b"K\x03"
        + weight_files.text("state_dict")
        + inner
        + b"u."
    )
    weight_files.write_pth(path, {"a": ARRAYS["a"]}, pickled=wrapped)
    np.testing.assert_array_equal(pth.read(path)["a"], ARRAYS["a"])


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
        pth.read(path)
    assert not crater.exists()


def doubled(depth: int) -> bytes:
    """A tuple of itself twice, `depth` deep, as the key of a dictionary: 2**depth to hash."""
    return b"\x80\x02)" + b"2\x86" * depth + b"}q\x002K\x01s."


def repeated(depth: int) -> bytes:
    steps = b"".join(b"q%ch%ch%c\x86" % (i, i, i) for i in range(depth))
    return b"\x80\x02}K\x01" + steps + b"K\x01s."


@pytest.mark.parametrize(
    ("pickled", "part"),
    [
        (b"\x80\x02" + b"}" * 250_000 + b".", "more than 200000 operations"),
        (doubled(40), "operation DUP"),
        (repeated(60), "damaged"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", "damaged"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02K\x01.", "no dictionary of tensors"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "a is no tensor"),
    ],
)
def test_pickle_bombs_are_refused(path, pickled, part):
    weight_files.write_pth(path, ARRAYS, pickled=pickled)
    with pytest.raises(UserError, match=part) as error:
        pth.read(path)
    assert "\n" not in str(error.value)


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
        ((100_000, 100), (0, 0), {}, "larger than the file"),
        ((3, 2), (0, 1), {}, "outside of its storage"),
        ((2, 3), (3, 1), {"size": 7}, "should have 7 numbers"),
    ],
)
def test_tensors_that_do_not_fit_their_storage_are_refused(path, shape, strides, options, part):
    array = np.arange(6, dtype=np.float32)
    pickled = tensor_pickle(shape, strides, **options)
    weight_files.write_pth(path, {"a": array}, pickled=pickled)
    with pytest.raises(UserError, match=part):
        pth.read(path)


def test_a_wrong_checksum_is_noticed(path):
    weight_files.write_pth(path, {"a": ARRAYS["a"]})
    data = path.read_bytes()
    place = data.index(ARRAYS["a"].tobytes()) + 20
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(UserError, match="wrong checksum"):
        pth.read(path)


@pytest.mark.parametrize("write", [weight_files.write_pth, weight_files.write_legacy_pth])
def test_a_file_cut_anywhere_is_refused(path, write):
    whole = write(path, {"a": ARRAYS["a"]}).read_bytes()
    for length in range(4, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            pth.read(path)


def test_a_compressed_zip_is_refused(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(UserError, match="compressed"):
        pth.read(path)


def test_each_pickle_of_a_stream_is_left_behind():
    file = io.BytesIO(pickle.dumps(1, 2) + pickle.dumps({"a": [1.5, None, True]}, 2))
    assert pickles.load(file) == 1
    assert pickles.load(file) == {"a": [1.5, None, True]}
