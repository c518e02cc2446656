"""A real runtime is broken in many ways; each must be found and named, and a sound one must never be called broken.

What `pip check` sees of the same damage is counted beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_orchestration_tests.conftest import Forge

NAME = "damaged"
PACKAGES = ("numpy", "packaging", "patsy", "typing-extensions")
SELF_TEST = "import numpy, packaging.version, patsy, typing_extensions\nprint(numpy.linalg.det(numpy.eye(3)))\n"
SOUND_CHECKS = 100
SAMPLE = 20  # of them in `make test`
_LOCK = Path(__file__).parents[2] / "forge_orchestration/runtimes/definitions/forge-singlecell/requirements.txt"
score: dict[str, tuple[bool, bool]] = {}
false_alarms: dict[int, int] = {}  # by the number of checks


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Forge:
    """A deployment with one runtime of four packages, as uv installs them."""
    home = tmp_path_factory.mktemp("sound") / "home"
    home.mkdir(mode=0o700)
    definition = home / "defined" / NAME
    definition.mkdir(parents=True)
    (definition / "requirements.txt").write_text("".join(_locked(name) for name in PACKAGES))
    (definition / "self_test.py").write_text(SELF_TEST)
    (definition / "runtime.toml").write_text('kind = "venv"\nlock = "requirements.txt"\nself_test = ["python", "self_test.py"]\n')
    (home / "settings.toml").write_text(f"runtime_folders = [{json.dumps(str(definition.parent))}]\n")
    forge = Forge(home)
    built = forge("runtimes", "build", NAME, timeout=280)
    assert built.returncode == 0, built.stderr
    return forge


def _locked(name: str) -> str:
    """The lines of one package in a hashed lock."""
    found = re.search(rf"^{re.escape(name)}==.*?(?=^\S|\Z)", _LOCK.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[0]


@pytest.fixture
def broken(sound: Forge, tmp_path: Path) -> Forge:
    """The same, to be broken; times are those of the original."""
    shutil.copytree(sound.home / "runtimes", tmp_path / "runtimes", symlinks=True)
    shutil.copy(sound.home / "settings.toml", tmp_path)
    tmp_path.chmod(0o700)
    return Forge(tmp_path)


def prefix_of(forge: Forge) -> Path:
    (build,) = (path for path in (forge.home / "runtimes" / NAME).iterdir() if path.is_dir())
    return build / "prefix"


def site_of(prefix: Path) -> Path:
    (site,) = prefix.glob("lib/python3*/site-packages")
    return site


def rewrite(path: Path, change: Callable[[bytes], bytes], *, keep_times: bool = False) -> None:
    facts = path.stat()
    path.write_bytes(change(path.read_bytes()))
    if keep_times:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def flipped(data: bytes) -> bytes:
    """One bit in the middle is another."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def remove_metadata(site: Path) -> None:
    shutil.rmtree(next(site.glob("typing_extensions-*.dist-info")))


def uninstall(prefix: Path, *names: str) -> None:
    uv(prefix, "pip", "uninstall", "--python", str(prefix / "bin/python"), *names)


def uv(prefix: Path, *words: str) -> None:
    import uv as package

    subprocess.run(
        [package.find_uv_bin(), *words],
        check=True,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(prefix), "UV_NO_CACHE": "1"},
    )


def overwrite_as_another(prefix: Path) -> None:
    """As an installation of another version over it does, which its own list does not know of."""
    site = site_of(prefix)
    record = next(site.glob("packaging-*.dist-info")) / "RECORD"
    rewrite(record, lambda text: text + b"typing_extensions.py,,\n")
    rewrite(site / "typing_extensions.py", lambda text: text + b"# another version\n")


def _link_to_copy(path: Path) -> None:
    copy = path.with_name("a copy of it")
    path.rename(copy)
    path.symlink_to(copy.name)


def _rename_for_another_python(site: Path) -> None:
    library = next(site.glob("numpy/_core/_multiarray_umath.cpython-*.so"))
    library.rename(library.with_name(re.sub(r"cpython-\d+", "cpython-310", library.name)))


def _remove_library(site: Path) -> None:
    next((site / "numpy.libs").glob("libscipy_openblas*")).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "file missing": (lambda prefix: (site_of(prefix) / "typing_extensions.py").unlink(), r"typing_extensions\.py is missing"),
    "file edited": (lambda prefix: rewrite(site_of(prefix) / "typing_extensions.py", lambda text: text + b"\n#"), r"typing_extensions\.py was edited"),
    "file edited, same size": (lambda prefix: rewrite(site_of(prefix) / "typing_extensions.py", flipped), r"typing_extensions\.py was edited"),
    "file edited, same size and time": (
        lambda prefix: rewrite(site_of(prefix) / "typing_extensions.py", flipped, keep_times=True), r"typing_extensions\.py has other content"
    ),
    "bit rot in a library": (
        lambda prefix: rewrite(next(site_of(prefix).glob("numpy/linalg/_umath_linalg*.so")), flipped, keep_times=True),
        r"_umath_linalg.*has other content",
    ),
    "file cut to nothing": (lambda prefix: rewrite(site_of(prefix) / "typing_extensions.py", lambda text: b""), r"typing_extensions\.py was edited"),
    "byte code edited": (
        lambda prefix: rewrite(next(site_of(prefix).glob("__pycache__/typing_extensions.*.pyc")), flipped, keep_times=True),
        r"typing_extensions\..*\.pyc has other content",
    ),
    "start hook added": (lambda prefix: (site_of(prefix) / "evil.pth").write_text("import os"), r"evil\.pth was added"),
    "module added": (lambda prefix: (site_of(prefix) / "numpy" / "json.py").write_text(""), r"numpy/json\.py was added"),
    "folder added": (lambda prefix: (site_of(prefix) / "other").mkdir(), r"other was added"),
    "file replaced by a link": (lambda prefix: _link_to_copy(site_of(prefix) / "typing_extensions.py"), r"typing_extensions\.py was replaced by another kind"),
    "file replaced by a folder": (
        lambda prefix: ((site_of(prefix) / "typing_extensions.py").unlink(), (site_of(prefix) / "typing_extensions.py").mkdir()), r"typing_extensions\.py was replaced"
    ),
    "file open to all": (lambda prefix: (site_of(prefix) / "typing_extensions.py").chmod(0o666), r"typing_extensions\.py has mode 666"),
    "folder open to all": (lambda prefix: (site_of(prefix) / "numpy").chmod(0o777), r"numpy has mode 777"),
    "set-uid": (lambda prefix: (prefix / "bin/activate").chmod(0o4755), r"bin/activate has mode 4755"),
    "program not executable": (lambda prefix: next(prefix.glob("bin/f2py")).chmod(0o644), r"bin/f2py has mode 644"),
    "interpreter elsewhere": (
        lambda prefix: ((prefix / "bin/python").unlink(), (prefix / "bin/python").symlink_to("/bin/sh")), r"bin/python links elsewhere"
    ),
    "link that leads nowhere": (
        lambda prefix: ((prefix / "bin/python").unlink(), (prefix / "bin/python").symlink_to("gone")), r"gone, which is not there"
    ),
    "settings of the environment": (
        lambda prefix: rewrite(prefix / "pyvenv.cfg", lambda text: text.replace(b"false", b"true")), r"pyvenv\.cfg was edited"
    ),
    "description torn": (
        lambda prefix: rewrite(next(site_of(prefix).glob("typing_extensions-*.dist-info")) / "METADATA", lambda text: text[:10]),
        r"typing_extensions-.*METADATA cannot be read",
    ),
    "list of files gone": (
        lambda prefix: (next(site_of(prefix).glob("typing_extensions-*.dist-info")) / "RECORD").unlink(), r"RECORD of typing_extensions cannot be read"
    ),
    "list of files torn": (
        lambda prefix: rewrite(next(site_of(prefix).glob("typing_extensions-*.dist-info")) / "RECORD", lambda text: text[: len(text) // 2]),
        r"RECORD of typing_extensions cannot be read|typing_extensions.*RECORD was edited",
    ),
    "package half removed": (
        lambda prefix: shutil.rmtree(site_of(prefix) / "packaging" / "licenses", ignore_errors=True)
        or (site_of(prefix) / "packaging" / "version.py").unlink(),
        r"packaging .* is half removed",
    ),
    "package without description": (lambda prefix: remove_metadata(site_of(prefix)), r"typing_extensions-.*is missing"),
    "description without package": (lambda prefix: (site_of(prefix) / "typing_extensions.py").unlink(), r"typing_extensions .*(half removed|none of its files)"),
    "overwritten by another package": (overwrite_as_another, r"typing_extensions\.py is not what typing_extensions .* installed: packaging .* has overwritten it"),
    "script of a moved environment": (
        lambda prefix: rewrite(prefix / "bin/f2py", lambda text: b"#!/old/place/bin/python\n" + text),
        r"bin/f2py is a script for /old/place/bin/python, which is not there",
    ),
    "library missing": (lambda prefix: _remove_library(site_of(prefix)), r"libscipy_openblas\S* is needed by a library"),
    "library of another Python": (
        lambda prefix: _rename_for_another_python(site_of(prefix)), r"cpython-310.* is for another Python"
    ),
    "requirement removed": (lambda prefix: uninstall(prefix, "numpy"), r"patsy \S+ needs numpy, which is not installed"),
    "requirement of another version": (
        lambda prefix: rewrite(
            next(site_of(prefix).glob("numpy-*.dist-info")) / "METADATA",
            lambda text: re.sub(rb"(?m)^Version: .*$", b"Version: 1.0", text),
        ),
        r"patsy \S+ needs numpy\S+, and 1\.0 is installed",
    ),
    "import that fails": (
        lambda prefix: rewrite(site_of(prefix) / "numpy/__init__.py", lambda text: b"raise ImportError('broken')\n" + text),
        r"failed its self-test: .*broken",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_named(broken: Forge, what: str) -> None:
    damage, expected = DAMAGE[what]
    prefix = prefix_of(broken)
    damage(prefix)
    score[what] = (False, _pip_check_complains(prefix))
    done = broken("runtimes", "verify", "--full", "--json", NAME, timeout=120)
    assert done.returncode == 4, done.stdout + done.stderr
    (report,) = json.loads(done.stdout)
    assert any(re.search(expected, finding) for finding in report["findings"]), report["findings"]
    assert report["state"] == "unhealthy"
    score[what] = (True, score[what][1])
    refused = broken("exec", "--runtime", NAME, "--", "true")
    assert refused.returncode == 4 and "forge runtimes repair" in refused.stderr, refused.stderr


def _pip_check_complains(prefix: Path) -> bool:
    """What `pip check`, by the environment's own interpreter where it still works, says."""
    import uv as package

    done = subprocess.run(
        [package.find_uv_bin(), "pip", "check", "--python", str(prefix / "bin/python")],
        env={"PATH": "/usr/bin:/bin", "HOME": str(prefix), "UV_NO_CACHE": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode != 0


@pytest.mark.parametrize("checks", [SAMPLE, pytest.param(SOUND_CHECKS, marks=pytest.mark.slow)])
def test_a_sound_runtime_is_never_called_broken(sound: Forge, checks: int) -> None:
    """Used meanwhile, as it would be: an execution runs in it, and the host's Python writes byte code beside it."""
    alarms = []
    pycache = site_of(prefix_of(sound)) / "numpy" / "testing" / "__pycache__"
    for number in range(checks):
        if number % 10 == 0:
            assert sound("exec", "--runtime", NAME, "--", "python", "-c", "import numpy.testing").returncode == 0
        if number == checks // 2:
            (pycache / f"late.cpython-{sys.version_info[0]}{sys.version_info[1]}.pyc").write_bytes(b"late")
        words = ("--full",) if number % 5 == 0 else ()
        done = sound("runtimes", "verify", *words, "--json", NAME, timeout=120)
        if done.returncode != 0:
            alarms.append(done.stdout + done.stderr)
    false_alarms[checks] = len(alarms)
    assert alarms == []


def test_the_score(capsys: pytest.CaptureFixture[str]) -> None:
    if len(score) < len(DAMAGE):
        pytest.skip("only some of the damage was done")
    found, by_pip = (sum(one[which] for one in score.values()) for which in (0, 1))
    with capsys.disabled():
        print(f"\ndamage found: {found} of {len(DAMAGE)}; by pip check: {by_pip}")
        for checks, alarms in false_alarms.items():
            print(f"false alarms in {checks} checks of a sound one: {alarms}")
        for what, (ours, pip) in score.items():
            print(f"  {what:<36} {'found' if ours else 'MISSED':<8} pip check: {'found' if pip else '-'}")
    assert found == len(DAMAGE) >= 25
