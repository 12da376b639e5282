"""Files and folders that people take for weights: what each is, and what to give instead."""

import re
from pathlib import Path

from deeplab_jax.types import UserError

START = 512
"""Bytes of a file that `describe` wants to see."""

ELSEWHERE = "networks of ImageNet are read from torchvision's .pth and Caffe's .caffemodel"

CONTENT = {
    rb"$": "is empty; download it again",
    rb"version https://git-lfs": "is a pointer of Git LFS and not the file itself; run git lfs "
    "pull in its repository, or download the file",
    rb"\s*<(!doctype|html|head|\?xml|error)": "is a web page and not the file; open its address in "
    "a browser to see what it asks for, and download again",
    rb"\x12\x01\0{6}": f"holds parameters of MXNet, which are not read; {ELSEWHERE}",
    rb"\x89HDF": f"is an HDF5 file, such as Keras writes, which is not read; {ELSEWHERE}",
    rb"MATLAB 5": f"is a file of MATLAB, which is not read; {ELSEWHERE}",
    rb"\x93NUMPY": "is one array without a name; save all of them by their names as .npz",
    rb".{4}TFL3": "is a program of LiteRT, whose weights are not read; give those it was made of",
    rb"\x08[\x01-\x7f]\x12.{0,40}(pytorch|onnx|tf2|jax)": "is an ONNX program, whose weights are "
    "not read; give those it was made of",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar": "is an archive; unpack it, and give the "
    "weight file in it",
    rb"(model|all_model)_checkpoint_path:": "is TensorFlow's list of checkpoints, which are not "
    f"read; {ELSEWHERE}",
    rb"[\t\n\r -~]{0,99}(layers?|name|input\w*) *[:{]": "is text, such as a network's prototxt; "
    "the weights are in a .caffemodel",
}
NAME = {
    r"\.(index|meta|data-\d+-of-\d+)$": "is part of a checkpoint of TensorFlow, which is not read; "
    + ELSEWHERE,
    r"\.pb$": f"is a graph of TensorFlow, which is not read; {ELSEWHERE}",
    r"\.(pdparams|pdopt)$": f"holds parameters of Paddle, which are not read; {ELSEWHERE}",
    r"\.pkl$": "is a pickle, such as Detectron's networks, which is not read; " + ELSEWHERE,
}
FOLDER = {
    "saved_model.pb": "is a SavedModel of TensorFlow, which is not read; " + ELSEWHERE,
    "*.index": "holds a checkpoint of TensorFlow, which is not read; " + ELSEWHERE,
    "_CHECKPOINT_METADATA": "is a checkpoint of Orbax; give the work folder of the run that it "
    "belongs to",
    "*/_METADATA": "is a checkpoint of Orbax; give the work folder of the run that it belongs to",
    "_METADATA": "is part of a checkpoint of Orbax; give the work folder of the run that it "
    "belongs to",
}


def describe(path: Path, start: bytes) -> str | None:
    """What a file with these first bytes is, as the end of a sentence; None where it may do."""
    for pattern, told in CONTENT.items():
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return told
    return next((told for pattern, told in NAME.items() if re.search(pattern, path.name)), None)


def refuse_folder(path: Path) -> None:
    """Refuses folders that are known and no work folder of a run.

    Raises:
      UserError
    """
    for pattern, told in FOLDER.items():
        if any(path.glob(pattern)):
            raise UserError(f"{path} {told}")
