"""Mutated weight files end in arrays or in one sentence: no crash, no hang, no memory.

pytest -m slow tests/test_weight_fuzz.py
"""

import io
import pickletools
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import sources

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "benchmarks"))

from paced import peak_memory  # noqa: E402

INPUTS = 10_000
MEMORY = 256 * 2**20
SECONDS = 10
INTERESTING = (0, 1, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1)


def some_weights(rng) -> dict[str, np.ndarray]:
    """A few layers: so small a file that a change seldom falls among its numbers."""
    shapes = {
        "conv1.weight": (4, 3, 7, 7),
        "bn1.weight": (4,),
        "layer1.0.conv1.weight": (4, 4, 1, 1),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def whole_network(rng) -> dict[str, np.ndarray]:
    """A whole ResNet with its head, which is read to the end where a change does not matter."""
    weights = theirs.random_torch_resnet(rng, theirs.kazuto_names, (1, 1, 1, 1), 1)
    for i in range(4):
        weights[f"aspp.c{i}.weight"] = theirs.random_kernel(rng, (3, 32, 3, 3))
        weights[f"aspp.c{i}.bias"] = np.ones(3, np.float32)
    return weights


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
    """Bytes of whole files, each with what changes its structure."""
    weights, network = some_weights(rng), whole_network(rng)
    layers = [("conv1", "Convolution"), ("bn_conv1", "BatchNorm"), ("scale_conv1", "Scale")]
    vector = rng.normal(size=4).astype(np.float32)
    blobs = [[weights["conv1.weight"]], [vector, vector, np.ones(1, np.float32)], [vector, vector]]
    caffe = b"".join(
        weight_files.layer(*layer, b, dilation=2) for layer, b in zip(layers, blobs, strict=True)
    )
    layers = theirs.random_caffe_resnet(rng, (1, 1, 1, 1), 1)
    layers |= theirs.random_caffe_head(rng, 3, 32)
    whole = b"".join(
        weight_files.layer(name, weight_files.kind_of(name), blobs, dilation=2)
        for name, blobs in layers.items()
    )
    zipped, legacy = weight_files.write_pth, weight_files.write_legacy_pth
    return (
        (zipped(folder / "w", weights).read_bytes(), change_zip),
        (legacy(folder / "w", weights).read_bytes(), change_legacy),
        (caffe, change_caffemodel),
        (zipped(folder / "w", network).read_bytes(), change_zip),
        (legacy(folder / "w", network).read_bytes(), change_legacy),
        (whole, change_caffemodel),
    )


def fuzz(folder: Path) -> None:
    """Reads INPUTS changed files, every second one changed in its structure."""
    rng = np.random.default_rng(0)
    files = seeds(folder, rng)
    path = folder / "w"
    before = peak_memory()
    refused = 0
    for number in range(INPUTS):
        data, change = files[number // 2 % len(files)]
        mutate = change if number % 2 else flip_bytes
        path.write_bytes(mutate(rng, data) or b"\0")
        started = time.process_time()
        try:
            sources.read(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        assert time.process_time() - started < SECONDS, number
    print(INPUTS, refused, peak_memory() - before)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_files_are_read_or_refused_in_bounded_time_and_memory(tmp_path):
    call = "import sys, pathlib, test_weight_fuzz as t; t.fuzz(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", call, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    inputs, refused, memory = map(int, done.stdout.split())
    print(f"{inputs} files, {refused} refused, {memory / 2**20:.0f} MB")
    assert inputs == INPUTS
    assert INPUTS / 2 < refused < INPUTS  # some changes do no harm
    assert memory <= MEMORY
