"""Mutated weight files end in arrays or in one sentence: no crash, no hang, no memory.

pytest -m slow tests/test_weight_fuzz.py
"""

import io
import pickletools
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import sources

INPUTS = 10_000
MEMORY = 256 * 2**20
SECONDS = 10
INTERESTING = (0, 1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1)


def some_weights(rng) -> dict[str, np.ndarray]:
    shapes = {
        "conv1.weight": (4, 3, 7, 7),
        "bn1.weight": (4,),
        "layer1.0.conv1.weight": (4, 4, 1, 1),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def flip_bytes(rng, data: bytes) -> bytes:
    """Changes, drops, doubles or cuts; knows nothing of the format."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 8)):
        if not data:
            break
        place = int(rng.integers(len(data)))
        length = int(rng.integers(1, 20))
        match rng.integers(5):
            case 0:
                data[place] ^= 1 << int(rng.integers(8))
            case 1:
                data[place] = int(rng.integers(256))
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data = data[: max(place, 1)]
    return bytes(data)


def change_pickle(rng, pickled: bytes) -> bytes:
    """Replaces, drops, doubles or swaps whole operations, or changes a number in one."""
    places = [position for _, _, position in pickletools.genops(pickled)] + [len(pickled)]
    parts = [pickled[a:b] for a, b in zip(places, places[1:], strict=False)]
    for _ in range(rng.integers(1, 4)):
        i, j = map(int, rng.integers(len(parts), size=2))
        match rng.integers(5):
            case 0:
                parts[i] = bytes([ord(rng.choice(pickletools.opcodes).code.encode("latin1"))])
            case 1:
                parts[i], parts[j] = parts[j], parts[i]
            case 2:
                parts.insert(i, parts[j])
            case 3:
                del parts[i : i + 1]
            case 4:
                numbers = [k for k, part in enumerate(parts) if part[:1] == b"J"]
                if numbers:
                    value = int(rng.choice(INTERESTING[:8])) - int(rng.integers(2)) * 2**31
                    parts[rng.choice(numbers)] = b"J" + struct.pack(
                        "<i", max(value, -(2**31)) % 2**31
                    )
        parts = parts or [b"."]
    return b"".join(parts)


def change_zip(rng, data: bytes) -> bytes:
    """The pickle changed within an intact zip, its checksum right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(out, "w") as after:
        for name in before.namelist():
            part = before.read(name)
            after.writestr(name, change_pickle(rng, part) if name.endswith("data.pkl") else part)
    return out.getvalue()


def change_legacy(rng, data: bytes) -> bytes:
    """The fourth pickle, the object's, changed; the others and the numbers left alone."""
    ends, stream = [0], io.BytesIO(data)
    for _ in range(4):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return data[: ends[3]] + change_pickle(rng, data[ends[3] : ends[4]]) + data[ends[4] :]


def change_caffemodel(rng, data: bytes) -> bytes:
    """A length, shape or key among the first bytes of a layer replaced by another varint."""
    starts = [i for i in range(len(data) - 4) if data[i : i + 2] == b"\xa2\x06"]
    place = int(rng.choice(starts)) + int(rng.integers(0, 60))
    value = weight_files.varint(int(rng.choice(INTERESTING)))
    return data[:place] + value + data[place + int(rng.integers(1, 4)) :]


def seeds(folder, rng):
    weights = some_weights(rng)
    layers = [("conv1", "Convolution"), ("bn_conv1", "BatchNorm"), ("scale_conv1", "Scale")]
    vector = rng.normal(size=4).astype(np.float32)
    blobs = [[weights["conv1.weight"]], [vector, vector, np.ones(1, np.float32)], [vector, vector]]
    caffe = b"".join(
        weight_files.layer(*layer, b, dilation=2) for layer, b in zip(layers, blobs, strict=True)
    )
    return (
        (weight_files.write_pth(folder / "zip.pth", weights).read_bytes(), change_zip),
        (weight_files.write_legacy_pth(folder / "old.pth", weights).read_bytes(), change_legacy),
        (caffe, change_caffemodel),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_files_neither_crash_nor_hang_nor_eat_memory(tmp_path):
    rng = np.random.default_rng(0)
    files = seeds(tmp_path, rng)
    path = tmp_path / "w"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(INPUTS):
        data, change = files[number % len(files)]
        mutate = change if number % 2 else flip_bytes
        path.write_bytes(mutate(rng, data) or b"\0")
        started = time.process_time()
        try:
            sources.read(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        assert time.process_time() - started < SECONDS, number
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"{INPUTS} files, {refused} refused, {memory / 2**20:.0f} MB")
    assert memory <= MEMORY
