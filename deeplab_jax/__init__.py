"""DeepLab v2 (arXiv 1606.00915) in JAX and Flax: the names a notebook needs.

They are imported when they are first asked for: a process that only reads photographs would wait
for all of them otherwise.
"""

import importlib
from typing import Any

_HOMES = {
    "DeepLabV2": "deeplab_jax.models.deeplab",
    "crf": "deeplab_jax",
    "load": "deeplab_jax.runs",
    "metrics": "deeplab_jax",
    "photographs": "deeplab_jax.data",
    "predict": "deeplab_jax.evaluation",
    "visualization": "deeplab_jax",
}

__all__ = list(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home in ("deeplab_jax", "deeplab_jax.data"):
        return importlib.import_module(f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
