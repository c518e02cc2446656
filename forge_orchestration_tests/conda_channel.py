"""A real conda channel in a folder: Debian's own Python, packed, and two small packages that show what packages can do.

`greeting` is noarch Python with an entry point; `landmarks` has a file with the prefix in it, a binary one too, an `activate.d` script and
variables of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

PLACEHOLDER = "/opt/placeholder_" + "x" * 200
_STDLIB = Path("/usr/lib/python3.11")
_LEFT_OUT = (
    "__pycache__",
    "dist-packages",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "test",
    "tests",
    "sitecustomize.py",
    "distutils",
    "pydoc_data",
)
# Debian's Python looks for packages in dist-packages unless it is told otherwise
_SITECUSTOMIZE = "import site, sys\nsite.addsitedir(f'{sys.prefix}/lib/python3.11/site-packages')\n"


def make_channel(folder: Path) -> Path:
    """Packages and index of the channel in `folder`, for `linux-64` or whatever this host is, and `noarch`."""
    from rattler.index import index_fs
    from rattler.platform import Subdir

    here = str(Subdir.current())
    pack(folder, here, "python", "3.11.2", _python())
    pack(folder, "noarch", "greeting", "1.2", _greeting("hello from 1.2"), noarch="python", depends=["python >=3.11"], link={
        "noarch": {"type": "python", "entry_points": ["greet = greeting:main"]}, "package_metadata_version": 1})  # fmt: skip
    pack(folder, "noarch", "greeting", "2.0", _greeting("hello from 2.0"), noarch="python", depends=["python >=3.11"], link={
        "noarch": {"type": "python", "entry_points": ["greet = greeting:main"]}, "package_metadata_version": 1})  # fmt: skip
    pack(folder, here, "landmarks", "1.0", {
        "bin/where": f"#!{PLACEHOLDER}/bin/python\nimport sys\nprint(sys.prefix)\n".encode(),
        "share/landmarks/binary": b"\x7fELF\0" + PLACEHOLDER.encode() + b"\0rest",
        "etc/conda/activate.d/landmarks.sh": b'export LANDMARKS="$CONDA_PREFIX/share/landmarks"\nexport PATH="$CONDA_PREFIX/extra/bin:$PATH"\n',
        "etc/conda/env_vars.d/landmarks.json": b'{"LANDMARKS_VERSION": "1.0"}',
    }, depends=["python"])  # fmt: skip
    asyncio.run(index_fs(folder))
    return folder


def environment_yml(folder: Path, *specs: str) -> str:
    """The text of an environment that takes `specs` from the channel in `folder`."""
    return f"name: local\nchannels:\n  - file://{folder}\ndependencies:\n" + "".join(f"  - {spec}\n" for spec in specs)


def _greeting(text: str) -> dict[str, bytes]:
    return {
        "site-packages/greeting/__init__.py": f"def main():\n    print({text!r})\n".encode(),
        "site-packages/greeting-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: greeting\nVersion: {text.rsplit(' ', 1)[1]}\n".encode(),
        "site-packages/greeting-1.dist-info/RECORD": b"greeting/__init__.py,,\ngreeting-1.dist-info/METADATA,,\ngreeting-1.dist-info/RECORD,,\n",
    }  # fmt: skip


def _python() -> dict[str, bytes | str]:
    """Content by path; a text is a link to it."""
    files: dict[str, bytes | str] = {
        "bin/python3.11": Path("/usr/bin/python3.11").read_bytes(), "bin/python3": "python3.11", "bin/python": "python3.11",
        "lib/python3.11/sitecustomize.py": _SITECUSTOMIZE.encode(),
    }  # fmt: skip
    for parent, folders, names in os.walk(_STDLIB):
        folders[:] = [one for one in folders if one not in _LEFT_OUT and not one.startswith("config-")]
        for name in names:
            path = Path(parent, name)
            if name not in _LEFT_OUT and path.is_file():
                files[f"lib/python3.11/{path.relative_to(_STDLIB)}"] = path.read_bytes()
    return files


def pack(
    channel: Path, subdir: str, name: str, version: str, files: Mapping[str, bytes | str], *, depends: list[str] | None = None,
    noarch: str | None = None, link: dict[str, object] | None = None,
) -> None:  # fmt: skip
    """Write a package to the channel in the folder `channel`, which is to be indexed then: content by path, a text is a link to it."""
    index = {
        "name": name,
        "version": version,
        "build": "0",
        "build_number": 0,
        "subdir": subdir,
        "depends": depends or [],
        "noarch": noarch,
    }
    paths = []
    for path, content in files.items():
        data = content if isinstance(content, bytes) else b""
        one = {"_path": path, "path_type": "hardlink" if isinstance(content, bytes) else "softlink", "size_in_bytes": len(data)}
        one["sha256"] = hashlib.sha256(data).hexdigest()
        if PLACEHOLDER.encode() in data:
            one |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "binary" if b"\0" in data else "text"}
        paths.append(one)
    info = {
        "info/index.json": index, "info/paths.json": {"paths": paths, "paths_version": 1}, **({"info/link.json": link} if link else {}),
    }  # fmt: skip
    (channel / subdir).mkdir(parents=True, exist_ok=True)
    with tarfile.open(channel / subdir / f"{name}-{version}-0.tar.bz2", "w:bz2", compresslevel=1) as archive:
        for path, value in info.items():
            _add(archive, path, json.dumps({key: one for key, one in value.items() if one is not None}).encode())
        _add(archive, "info/files", "".join(f"{path}\n" for path in files).encode())
        for path, content in files.items():
            _add(archive, path, content)


def _add(archive: tarfile.TarFile, path: str, content: bytes | str) -> None:
    entry = tarfile.TarInfo(path)
    entry.mtime, entry.mode = 1_700_000_000, 0o755 if path.startswith("bin/") else 0o644
    if isinstance(content, str):
        entry.type, entry.linkname = tarfile.SYMTYPE, content
        archive.addfile(entry)
        return
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
