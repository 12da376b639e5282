"""The options of scripts that run the fully connected CRF."""

from dataclasses import dataclass
from typing import Any

from deeplab_jax.choices import CRFNormalization


@dataclass(frozen=True, kw_only=True)
class CRFOptions:
    """Options of `crf.refine` that several scripts have."""

    crf_normalization: CRFNormalization = "symmetric"
    """symmetric, as pydensecrf, or per_pixel, as the authors and the published rows."""
    crf_max_pixels: int | None = None
    """Refine photographs with more pixels at a smaller scale, which saves memory and time."""
    crf_prune_below: float | None = None
    """Leave labels that are less probable at every pixel out of the CRF's messages, which saves
    time: 0.01, say."""
    crf_bands: tuple[int, ...] | None = None
    """Channels that the CRF compares in place of colours, counted from 0, 1 to 6 of them; as the
    run says where none are given."""

    def of_refine(self) -> dict[str, Any]:
        """These options as arguments of `crf.refine`."""
        return {
            "normalization": self.crf_normalization,
            "max_pixels": self.crf_max_pixels,
            "prune_below": self.crf_prune_below,
            "bands": self.crf_bands,
        }
