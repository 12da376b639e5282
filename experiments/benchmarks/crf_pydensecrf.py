"""pydensecrf's side of crf.py; as a script, the peak memory of a process of either side.

python experiments/benchmarks/crf_pydensecrf.py ours|theirs ARRAYS.npz
"""

import sys

import numpy as np
import paced
from pydensecrf import densecrf


def construct(image: np.ndarray, probs: np.ndarray) -> densecrf.DenseCRF2D:
    """The CRF with the parameters of `crf.RESNET101`."""
    h, w, c = probs.shape
    model = densecrf.DenseCRF2D(w, h, c)
    model.setUnaryEnergy(np.ascontiguousarray(-np.log(probs.reshape(-1, c)).T))
    model.addPairwiseGaussian(sxy=1, compat=3)
    model.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    return model


if __name__ == "__main__":
    with np.load(sys.argv[2]) as arrays:
        given = arrays["image"], arrays["probs"]
    if sys.argv[1] == "ours":
        from deeplab_jax import crf  # loads JAX, which is no part of the other's memory

        crf.refine(*given)
    else:
        np.argmax(construct(*given).inference(10), axis=0)
    print(paced.peak_memory() / 2**30)
