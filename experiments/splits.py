"""The val split that a run was scored on, for the scripts that look at runs."""

from pathlib import Path

from deeplab_jax.config import Config
from deeplab_jax.data import builders


def open_val(config: Config, *, prepared_dir: Path) -> builders.Source:
    """Read from where the run read it, drawn scenes under `prepared_dir`."""
    root = config.data.root or prepared_dir / f"scenes-{config.data.num_scenes}"
    split = config.data.val_split
    return builders.open_dataset(root, prepared_dir=prepared_dir, splits=(split,)).splits[split]
