"""Adds the pages and pictures of the repository to the site under their own paths."""

import subprocess
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SHOWN = (".md", ".ipynb", ".png")
ELSEWHERE = (".docs/", "tests/")


@event_priority(100)  # before notebooks are found among the files
def on_files(files, config):
    """All pages and pictures that git knows, and the files that pages link to."""
    command = ["git", "ls-files"]
    tracked = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in tracked.splitlines():
        if name.startswith(ELSEWHERE):
            continue
        if name.endswith(SHOWN) or name.endswith((".py", ".slurm")):
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files
