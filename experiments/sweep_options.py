"""The options that every sweep has."""

from dataclasses import dataclass
from pathlib import Path

from deeplab_jax.choices import CRFNormalization


@dataclass(frozen=True)
class Options:
    root: Path | None = None
    """Data set of all runs; the drawn scenes of the preset quickstart where none is given."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each row is trained once with each seed; table and figure show the spread."""
    output: Path | None = None
    """Folder of the work folders, the tables and the figure; under runs/ by default."""
    crf: bool = True
    """Score after the fully connected CRF too."""
    crf_params: str | None = None
    """File of search_crf.py or name of published parameters; None: learnt, or the network's."""
    crf_normalization: CRFNormalization = "symmetric"
    """symmetric, as pydensecrf, or per_pixel, as the authors and the published rows."""
    parallel: int | None = None
    """Runs at a time; None: one a device."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    dry_run: bool = False
    """Print the commands and run nothing."""
