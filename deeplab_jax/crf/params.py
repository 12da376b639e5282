"""Parameters of the CRF's energy, and the values that were published."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax

from deeplab_jax.types import Array, UserError


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CRFParams:
    """Pairwise terms of the fully connected CRF (Equation 3), Potts compatibility.

    Distances are in pixels of the full-size image, colours in steps of 0..255. The values may
    be traced: changing them does not recompile. The defaults belong to ResNet-101. A standard
    deviation may also be one number for each axis (x, y), or each of red, green and blue.
    """

    appearance_weight: float | int | Array = 4.0
    """Weight of the appearance kernel (w1)."""
    sigma_xy: float | int | tuple | Array = 67.0
    """Reach of the appearance kernel in pixels (sigma alpha)."""
    sigma_rgb: float | int | tuple | Array = 3.0
    """Reach of the appearance kernel in colour (sigma beta)."""
    smoothness_weight: float | int | Array = 3.0
    """Weight of the smoothness kernel (w2)."""
    sigma_smoothness: float | int | tuple | Array = 1.0
    """Reach of the smoothness kernel in pixels (sigma gamma)."""


PUBLISHED = {
    "resnet101": CRFParams(4.0, 67.0, 3.0, 3.0, 1.0),
    "vgg16_aspp": CRFParams(4.0, 65.0, 3.0, 2.0, 2.0),
    "resnet101_test_prototxt": CRFParams(5.0, 21.0, 3.0, 4.0, 1.0),
    "v2_run_script": CRFParams(4.0, 49.0, 5.0, 3.0, 3.0),
    "v1": CRFParams(5.0, 50.0, 10.0, 3.0, 3.0),
    "v1_coco": CRFParams(5.0, 67.0, 3.0, 3.0, 3.0),
    "v1_coco_large_fov": CRFParams(5.0, 69.0, 5.0, 3.0, 3.0),
    "v1_large_fov": CRFParams(4.0, 121.0, 5.0, 3.0, 3.0),
    "v1_msc": CRFParams(3.0, 95.0, 3.0, 3.0, 3.0),
    "v1_msc_coco_large_fov": CRFParams(4.0, 59.0, 5.0, 3.0, 3.0),
    "v1_msc_large_fov": CRFParams(4.0, 83.0, 5.0, 3.0, 3.0),
}
"""From the authors' model pages and released scripts."""
RESNET101 = PUBLISHED["resnet101"]


def write_params(path: Path, params: CRFParams) -> None:
    """JSON of the five numbers."""
    path.write_text(json.dumps(asdict(params), indent=2) + "\n")


def read_params(source: str | Path) -> CRFParams:
    """A published set by its name, or what `write_params` left in a file; else a UserError."""
    if str(source) in PUBLISHED:
        return PUBLISHED[str(source)]
    names = [f.name for f in fields(CRFParams)]
    try:
        text = Path(source).read_text()
    except OSError:
        raise UserError(
            f"{source} is neither a file of CRF parameters nor one of the published sets "
            f"{', '.join(PUBLISHED)}"
        ) from None
    try:
        values = json.loads(text)
        numbers = all(math.isfinite(x) and x >= 0 for x in values.values())
        sigmas = all(x > 0 for name, x in values.items() if name.startswith("sigma"))
        right = numbers and sigmas and sorted(values) == sorted(names)
    except (AttributeError, TypeError, ValueError):
        right = False
    if not right:
        raise UserError(
            f"expected CRF parameters, a JSON file of {', '.join(names)}, finite and the sigmas "
            f"above 0, and {source} holds {' '.join(text.split())[:200]}"
        )
    return CRFParams(**values)


def choose_params(
    source: str | Path | None, *, learnt: dict[str, float] | None, model: Mapping[str, Any]
) -> CRFParams:
    """What `read_params` finds; where no source is given, the learnt weights in RESNET101, or the
    set that was published for a network with trunk and head of the fields `model`."""
    if source is not None:
        return read_params(source)
    if learnt or model.get("backbone", "resnet") != "vgg":
        return replace(RESNET101, **learnt or {})
    if len(model.get("aspp_rates", (6, 12, 18, 24))) > 1:
        return PUBLISHED["vgg16_aspp"]
    return PUBLISHED["v1_large_fov" if model.get("head_kernel_size", 3) == 3 else "v1"]
