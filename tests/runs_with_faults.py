"""What the tests of faults share: a generated folder, a tiny network, train_voc.py as a process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab_jax import checkpoints, load, workdir
from deeplab_jax.weights import files

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
FAULTY = Path(__file__).with_name("faulty_train_voc.py")

NUM_STEPS = 12

TINY = f"""small --data.root data --data.crop-size 33 --data.augmentation-scales 1.0
  --model.stage-sizes 1 1 1 1 --model.width 4 --model.aspp-rates 1 2
  --class-balance 0 --batch-size 4 --max-per-device 4 --num-devices 1 --log-every 1 --save-every 2
  --num-steps {NUM_STEPS}""".split()


def draw_data(root: Path, *, num_train: int = 8, num_val: int = 2) -> Path:
    """Photographs of two colours and their masks, in VOC layout."""
    rng = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    names = [f"p{i}" for i in range(num_train + num_val)]
    for name in names:
        labels = np.zeros((40, 48), np.uint8)
        labels[: rng.integers(10, 30), : rng.integers(10, 40)] = 1
        image = rng.integers(0, 80, (40, 48, 3)) + 120 * labels[..., None]
        Image.fromarray(image.astype(np.uint8)).save(root / f"JPEGImages/{name}.jpg")
        Image.fromarray(labels).save(root / f"SegmentationClass/{name}.png")
    for split, part in (("train", names[:num_train]), ("val", names[num_train:])):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(part) + "\n")
    (root / "labels.txt").write_text("ground\nthing\n")
    return root


def start_script(script: str | Path, *words: object, cwd: Path, devices: int = 1, **variables: str):
    """A script of experiments, or that of a path, in a process of its own."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, str(EXPERIMENTS / script), *map(str, words)],
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **flags, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(folder: Path, workdir: str, *options: object, **variables):
    """train_voc.py; a FAULT among the variables is built in."""
    script = FAULTY if {"FAULT", "RECORD"} & variables.keys() else "train_voc.py"
    return start_script(script, *TINY, "--workdir", workdir, *options, cwd=folder, **variables)


def finish(process, *, status: int = 0, seconds: float = 300) -> str:
    """What a process wrote until it ended with the status expected."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert process.returncode == status, out + err
    return out + err


def run_script(script: str, *words: object, status: int = 0, **options) -> str:
    return finish(start_script(script, *words, **options), status=status, seconds=900)


def run(folder: Path, workdir: str, *options: object, status: int = 0, **variables) -> str:
    return finish(start(folder, workdir, *options, **variables), status=status)


def wait_until(true, process=None, *, seconds: float = 300) -> None:
    """Returns when `true()`; a process that ends before, where one is given, is a failure."""
    deadline = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for does not."""
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")


def updates(folder: Path) -> list[int]:
    """Numbers of the updates in metrics.jsonl, in its order."""
    return [record["step"] for record in workdir.read_metrics(folder) if "loss" in record]


def saved(workdir: Path) -> list[int]:
    return checkpoints.steps(workdir / "checkpoints")


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    return files.flatten(load(workdir)[1])


def lines(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without what a clock says."""
    records = workdir.read_metrics(folder)
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]


def assert_same_run(workdir: Path, other: Path) -> None:
    """Every array bit for bit, and every line of the metrics."""
    found, wanted = arrays(workdir), arrays(other)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    assert lines(workdir) == lines(other)
