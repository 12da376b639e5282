"""DeepLab v2 (arXiv 1606.00915) in JAX and Flax: the names a notebook needs.

They are imported when they are first used: a process that only reads photographs would wait for
all of them otherwise.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deeplab_jax import crf, metrics, visualization
    from deeplab_jax.data import images as photographs
    from deeplab_jax.evaluation import InferenceOptions, predict
    from deeplab_jax.models.deeplab import (
        DeepLabV2,
        build,
        resnet50_aspp,
        resnet101_aspp,
        resnet101_aspp_msc,
        resnet101_large_fov,
        vgg16_aspp_l,
        vgg16_aspp_s,
        vgg16_large_fov,
    )
    from deeplab_jax.segmenter import Segmenter, load

__all__ = [
    "DeepLabV2",
    "InferenceOptions",
    "Segmenter",
    "build",
    "crf",
    "load",
    "metrics",
    "photographs",
    "predict",
    "resnet50_aspp",
    "resnet101_aspp",
    "resnet101_aspp_msc",
    "resnet101_large_fov",
    "vgg16_aspp_l",
    "vgg16_aspp_s",
    "vgg16_large_fov",
    "visualization",
]

_MODULES = {n: n for n in ("crf", "metrics", "visualization")} | {"photographs": "data.images"}
_HOMES = {"load": "segmenter", "Segmenter": "segmenter"}
_HOMES |= {"predict": "evaluation", "InferenceOptions": "evaluation"}

try:
    __version__ = version("deeplab_jax")
except PackageNotFoundError:  # run from a folder that was not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _MODULES.get(name) or _HOMES.get(name, "models.deeplab")
    try:
        module = importlib.import_module(f"{__name__}.{home}")
    except ModuleNotFoundError as missing:
        raise ImportError(
            f"deeplab_jax.{name} needs the package {missing.name}, which a light installation "
            "leaves out: type `pip install .` in a clone, without --no-deps"
        ) from None
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
