"""The .caffemodel reader: what it understands, and the sentence that it says otherwise."""

import numpy as np
import pytest
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import formats, sources

KERNEL = np.arange(24, dtype=np.float32).reshape(4, 3, 1, 2)
BIAS = np.arange(4, dtype=np.float32)


def arrays_of(path, data: bytes):
    path.write_bytes(data)
    return formats.read(path).arrays


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.caffemodel"


@pytest.mark.parametrize("factor", [0.0, 1.0, 250.0])
def test_statistics_are_divided_by_their_factor_and_zero_gives_zero(path, factor):
    blobs = [BIAS * factor, (BIAS + 1) * factor, np.array([factor], np.float32)]
    arrays = arrays_of(path, weight_files.layer("bn", "BatchNorm", blobs))
    np.testing.assert_allclose(arrays["bn/mean"], BIAS if factor else 0 * BIAS)
    np.testing.assert_allclose(arrays["bn/var"], BIAS + 1 if factor else 0 * BIAS)


def test_numbers_in_double_precision_stay_so(path):
    shape = weight_files.field(7, weight_files.field(1, weight_files.varint(2)))
    data = weight_files.field(8, np.array([1 / 3, 2 / 3]).tobytes())
    body = weight_files.field(1, b"x") + weight_files.field(2, b"Scale")
    arrays = arrays_of(path, weight_files.field(100, body + weight_files.field(7, shape + data)))
    assert arrays["x/gamma"].tolist() == [1 / 3, 2 / 3]


def wrong_shape() -> bytes:
    body = weight_files.field(7, weight_files.field(1, weight_files.varint(5)))
    blob = weight_files.field(7, body + weight_files.field(5, b"\0" * 16))
    return weight_files.field(100, weight_files.field(1, b"conv") + blob)


GOOD = weight_files.layer("conv", "Convolution", [KERNEL])


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (GOOD[:-3], "damaged; is the file whole"),
        (wrong_shape(), "damaged; is the file whole"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "damaged; is the file whole"),
        (b"\x0b\x00", "is the download complete"),
        (weight_files.layer("conv", "Convolution"), "none of its 1 layers holds weights"),
        (GOOD + GOOD, "holds conv/weights twice"),
        (weight_files.layer("c", "Convolution", [KERNEL, BIAS, BIAS]), "has 3 arrays"),
    ],
)
def test_damage_is_reported_in_one_sentence(path, data, part):
    path.write_bytes(data)
    with pytest.raises(UserError, match=part) as error:
        sources.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
