"""Folders and files that several modules need."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge_orchestration.settings import Settings, load_settings, make_home

DeepFolder = Callable[[Path, str, int], None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of an empty home, with only `tmp_path/data` for inputs."""
    home = tmp_path / "home ö"
    home.mkdir()
    (tmp_path / "data").mkdir(mode=0o755)
    (home / "settings.toml").write_text(f'allowed_input_roots = ["{tmp_path}/data"]\n')
    made = load_settings(home)
    make_home(made)
    return made


@pytest.fixture
def deep_folder() -> Iterator[DeepFolder]:
    """Makes `folder/name/name/…/deep.txt`, deeper than one path can say; removed at the end, which Python's own functions cannot."""
    made: list[Path] = []

    def make(folder: Path, name: str, depth: int) -> None:
        made.append(folder)
        fd = os.open(folder, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("deep.txt", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)

    yield make
    for folder in made:
        subprocess.run(["rm", "-rf", "--", folder], check=True, timeout=60)
