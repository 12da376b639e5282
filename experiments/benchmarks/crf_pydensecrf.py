"""pydensecrf's side of crf.py; as a script, its peak memory in a process without JAX.

python experiments/benchmarks/crf_pydensecrf.py ARRAYS.npz
"""

import json
import resource
import sys

import numpy as np
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
    with np.load(sys.argv[1]) as arrays:
        np.argmax(construct(arrays["image"], arrays["probs"]).inference(10), axis=0)
    print(json.dumps({"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
