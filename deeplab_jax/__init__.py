"""DeepLab v2 (arXiv 1606.00915) in JAX and Flax: the names a notebook needs."""

from deeplab_jax import crf, metrics, visualization
from deeplab_jax.data import photographs
from deeplab_jax.evaluation import predict
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.runs import load

__all__ = ["DeepLabV2", "crf", "load", "metrics", "photographs", "predict", "visualization"]
