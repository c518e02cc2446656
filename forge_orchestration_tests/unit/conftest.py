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
def as_nobody(tmp_path: Path) -> Callable[[Callable[[], str]], str]:
    """Calls a function as somebody whom permissions stop, and returns what it returns: in a child, if this process is root."""

    def call(function: Callable[[], str]) -> str:
        if os.geteuid() != 0:
            return function()
        subprocess.run(["chown", "-R", "--no-dereference", "65534:65534", "--", tmp_path], check=True, timeout=60)
        for parent in tmp_path.parents:  # pytest's own folders are closed to others
            if parent.name.startswith("pytest-"):
                os.chmod(parent, 0o711)
        read_end, write_end = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.write(write_end, function().encode())
            except BaseException as error:
                os.write(write_end, repr(error).encode())
            finally:
                os._exit(0)
        os.close(write_end)
        with open(read_end, encoding="utf-8") as file:
            said = file.read()
        os.waitpid(pid, 0)
        return said

    return call


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
