"""Pictures of prepared records, from their bytes to arrays.

OpenCV decodes where it is installed, as the extra `fast`, and Pillow where it is not. Both give
the same pixels of a PNG; two JPEG decoders may differ by 2 grey levels.
"""

import io
import zlib

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image, features

from deeplab_jax.types import Photograph

try:
    import cv2
except ImportError:  # the extra `fast`
    cv2 = None


def decode_photograph(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB of a JPEG or PNG of 8-bit RGB."""
    if cv2 is None:
        return np.asarray(Image.open(io.BytesIO(data)))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture is not None  # it was decoded when it was prepared
    return picture


def decode_bands(data: bytes) -> Photograph:
    """What `files.encode_bands` made bytes of."""
    return np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False)


def decode_labels(data: bytes) -> UInt8[np.ndarray, "h w"]:
    """Class ids of a grey PNG of 8 bits."""
    if cv2 is None:
        return np.asarray(Image.open(io.BytesIO(data)))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture is not None  # as above
    return picture


def decoder() -> str:
    """Which decoder it is, with versions, as a run records it."""
    if cv2 is not None:
        return f"OpenCV {cv2.__version__}"
    turbo = features.version_feature("libjpeg_turbo")
    library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
    return f"Pillow {PIL.__version__}, {library}"
