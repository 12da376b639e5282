"""What an installed wheel must do: import, refine by the CRF, load a file that it wrote, predict.

Run outside of the repository: python try_wheel.py
"""

import tempfile
from pathlib import Path

import jax
import numpy as np

import deeplab_jax
from deeplab_jax import crf, train
from deeplab_jax.weights import files


def main() -> None:
    assert "site-packages" in deeplab_jax.__file__, deeplab_jax.__file__
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    options = {"stage_sizes": (1, 1, 1, 1), "width": 4, "norm": "trained", "scales": (1.0,)}
    model = deeplab_jax.build(3, **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.safetensors"
        header = {"model": options, "class_names": ["sky", "road", "car"]}
        files.write(path, train.init_variables(model, jax.random.key(0)), header)
        probs = deeplab_jax.load(path).predict(image)
    refined = crf.refine(image, probs)
    assert refined.shape == (40, 60, 3)
    np.testing.assert_allclose(np.asarray(refined).sum(-1), 1, rtol=1e-4)
    print(
        f"deeplab_jax {deeplab_jax.__version__}: a network was loaded, and its scores were refined"
    )


if __name__ == "__main__":
    main()
