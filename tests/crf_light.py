"""What has to work where only jax, jaxtyping and pillow are installed; a script without pytest.

With --refuse it refuses to import everything else, wherever it runs.
"""

import sys
from importlib import import_module, metadata

KNOWN = {"jax", "jaxlib", "jaxtyping", "ml_dtypes", "numpy", "opt_einsum", "PIL", "scipy"}
KNOWN |= {"wadler_lindig", "deeplab_jax"}
KNOWN |= {"beartype", "typeguard"}  # which jaxtyping looks for


class Refuse:
    """A finder that finds no other package that is installed."""

    others = set(metadata.packages_distributions()) - KNOWN - sys.stdlib_module_names

    def find_spec(self, name, path=None, target=None):
        if name in self.others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main():
    import deeplab_jax

    for name in ("crf", "metrics", "photographs", "visualization"):
        assert getattr(deeplab_jax, name)
    import_module("deeplab_jax.crf.densecrf")
    try:
        deeplab_jax.load  # noqa: B018
    except ImportError as error:
        print(error)
    check_refine()


def check_refine():
    """A photograph of two halves gets its wrong block back."""
    import numpy as np

    from deeplab_jax import crf, metrics, visualization

    right = np.arange(40) >= 20
    image = np.where(right[:, None], 200, 40) * np.ones((30, 1, 3))
    labels = right * np.ones((30, 1), int)
    wrong = labels.copy()
    wrong[10:14, 5:9] = 1
    probs = np.where(wrong[..., None] == np.arange(2), 0.6, 0.4)
    refined = crf.refine(image.astype(np.uint8), probs).argmax(-1)
    assert metrics.mean_iou(metrics.confusion_matrix(labels, refined, num_classes=2)) == 1
    assert visualization.overlay(image.astype(np.uint8), refined).shape == image.shape
    print("refined")


if __name__ == "__main__":
    if "--refuse" in sys.argv:
        sys.meta_path.insert(0, Refuse())
    main()
