"""Which kind a file is, told from its first bytes."""

import json
import struct

import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax.weights import sources


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory):
    rng = np.random.default_rng(0)
    weights = theirs.random_torch_resnet(rng, theirs.torch_names, (1, 1, 1, 1), 1)
    return weight_files.write_safetensors(tmp_path_factory.mktemp("w") / "w", weights).read_bytes()


@pytest.mark.parametrize("first_byte", range(0, 256, 8))
def test_a_safetensors_file_is_known_whatever_the_first_byte_of_its_headers_length(
    tmp_path, safetensors, first_byte
):
    """Headers are padded to a multiple of 8 bytes, so the length begins with one of 32 bytes."""
    (length,) = struct.unpack("<Q", safetensors[:8])
    header, data = safetensors[8 : 8 + length], safetensors[8 + length :]
    padding = (first_byte - length) % 256
    assert json.loads(header + b" " * padding) == json.loads(header)
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length + padding) + header + b" " * padding + data)
    assert path.read_bytes()[0] == first_byte
    flat, header = sources.read(path)
    assert header["source"]["convention"] == "torchvision ResNet"
    assert "trunk/res5_1/branch2c/var" in flat
