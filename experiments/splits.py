"""The val split that a run was scored on, for the scripts that look at runs."""

from pathlib import Path

from deeplab_jax import runs
from deeplab_jax.config import Config
from deeplab_jax.data import builders


def open_val(config: Config, *, prepared_dir: Path) -> builders.Source:
    """Read from where the run read it, drawn scenes under `prepared_dir`."""
    root = runs.data_root(config, None, prepared_dir)
    split = config.data.val_split
    return builders.open_dataset(root, prepared_dir=prepared_dir, splits=(split,)).splits[split]
