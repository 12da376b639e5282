"""Comparing logits of a source's weights in our network and in its own.

The reference is the source's network in NumPy (source_networks.py), fed from the same file's
arrays under the source's names, in float64. Photographs have odd and even sizes.
"""

import jax
import numpy as np

from deeplab_jax import train
from deeplab_jax.models.deeplab import build
from deeplab_jax.weights import branches, files, sources

RATES = (1, 2, 3, 4)
CLASSES = 5
MEAN_BGR = np.array([104.008, 116.669, 122.675])
PORTS_MEAN_BGR = np.array([104.00698793, 116.66876762, 122.67891434])
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (2, 37, 46, 3), np.uint8)
ALIGNED = np.random.default_rng(1).integers(0, 256, (1, 33, 65, 3), np.uint8)
QUICK = {"xla_backend_optimization_level": 0}


def ours(path, photograph, dtype, *, answers=None, extra=None, kept=None, **fields):
    """Logits of our network with the weights of `path`, NHWC, its branches `kept` alone."""
    flat, header = sources.read(path, answers=answers or sources.Answers(RATES))
    flat, header = branches.choose(path, flat, header, kept)
    flat |= extra or {}
    model_fields = header["model"] | {"dtype": dtype} | fields
    classes = len(sources.class_names(flat))
    with jax.enable_x64(dtype == "float64"):
        model = build(num_classes=classes, **model_fields)
        shapes = jax.eval_shape(lambda: train.init_variables(model, jax.random.key(0)))
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), shapes)
        variables = files.fill(blank, flat)
        inputs = photograph[..., ::-1].astype(dtype) - np.array(model.mean_bgr, dtype)
        apply = jax.jit(model.apply).lower(variables, inputs).compile(QUICK)
        return np.asarray(apply(variables, inputs)).astype(np.float64)


def bgr(photograph, dtype, mean=MEAN_BGR):
    return photograph[..., ::-1].transpose(0, 3, 1, 2).astype(dtype) - mean[:, None, None].astype(
        dtype
    )


def standardised(photograph):
    """What torchvision's networks see."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((photograph / 255 - mean) / std).transpose(0, 3, 1, 2)


def assert_same(path, photograph, reference, **options):
    """float64 agrees to 1e-9; float32 errs by no more than three times the reference's float32."""
    exact = reference(np.float64).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(
        ours(path, photograph, "float64", **options), exact, rtol=1e-9, atol=1e-9 * abs(exact).max()
    )
    error = ours(path, photograph, "float32", **options) - exact
    their_error = reference(np.float32).transpose(0, 2, 3, 1) - exact
    assert np.sqrt(np.mean(error**2)) <= 3 * np.sqrt(np.mean(their_error**2))


def last_layer(kernel):
    """A classifier for weights of ImageNet, which have none: one 1x1 convolution `[o, i, 1, 1]`."""
    return {
        "head/fc8_1/kernel": kernel.transpose(2, 3, 1, 0),
        "head/fc8_1/bias": np.zeros(len(kernel)),
    }
