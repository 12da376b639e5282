"""python -m deeplab_jax: what is kept on the disk, and how it is removed."""

import subprocess

from deeplab_jax import __main__ as told


def test_sizes_are_told_and_the_commands_remove_what_was_counted(tmp_path, monkeypatch):
    cache, prepared = tmp_path / "a cache", tmp_path / "prepared"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("DEEPLAB_JAX_WEIGHTS", raising=False)
    sizes = {
        cache / "deeplab_jax" / "program": 3_000_000,
        cache / "deeplab_jax" / "weights" / "w.pth": 20_000_000,
        prepared / "pets" / "records": 500_000,
    }
    for path, size in sizes.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
    text = told.describe(prepared)
    for size in ("0.5 MB", "20.0 MB", "3.0 MB"):
        assert f" {size}  " in text
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    assert len(commands) == 3
    for command in commands:
        subprocess.run(command, shell=True, check=True)
    assert not any(path.exists() for path in sizes)
    assert "rm -r" not in told.describe(prepared)
