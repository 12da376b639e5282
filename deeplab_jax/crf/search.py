"""Which CRF parameters to try: a coarse grid, then finer steps around its best (Section 4.1).

The paper cross-validates three parameters on 100 photographs of the val split and keeps weight and
width of the smoothness kernel at 3. The values it publishes for its released networks show that
those two were searched as well, so that a grid may have them.
"""

from dataclasses import dataclass, fields, replace
from itertools import product

from deeplab_jax.crf.params import CRFParams


@dataclass(frozen=True)
class Grid:
    """Values to try of each parameter, ascending and evenly spaced; every combination counts."""

    appearance_weight: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    """w1 (Section 4.1.2)."""
    sigma_xy: tuple[float, ...] = (30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
    """Sigma alpha in pixels (Section 4.1.2)."""
    sigma_rgb: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    """Sigma beta in colour steps (Section 4.1.2)."""
    smoothness_weight: tuple[float, ...] = ()
    """w2; none: it stays fixed."""
    sigma_smoothness: tuple[float, ...] = ()
    """Sigma gamma in pixels; none: it stays fixed."""


def trials(grid: Grid, fixed: CRFParams) -> list[CRFParams]:
    """All combinations; what the grid has no values of is that of `fixed`.

    >>> [p.sigma_xy for p in trials(Grid((3.0,), (30.0, 40.0), (3.0,)), CRFParams())]
    [30.0, 40.0]
    """
    axes = {f.name: getattr(grid, f.name) for f in fields(grid) if getattr(grid, f.name)}
    return [
        replace(fixed, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())
    ]


def finer(grid: Grid, best: CRFParams) -> Grid:
    """Half a step of `grid` to either side of `best`; an axis of one value stays as it is.

    >>> finer(Grid((4.0,), (30.0, 40.0), (3.0, 4.0)), CRFParams(4.0, 40.0, 3.0)).sigma_xy
    (35.0, 40.0, 45.0)
    """

    def around(values: tuple[float, ...], value: float) -> tuple[float, ...]:
        if len(values) < 2:
            return values
        step = (values[1] - values[0]) / 2
        return tuple(v for v in (value - step, value, value + step) if v > 0)

    return Grid(
        *(around(getattr(grid, f.name), getattr(best, f.name)) for f in fields(grid)),
    )
