"""The catalog: which runtimes there are, and a sentence for each way in which one cannot be used."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.runtimes import building, catalog, venv
from forge_orchestration.settings import Settings, load_settings
from forge_orchestration_tests.conftest import copy_runtime

GOOD = 'kind = "venv"\nlock = "requirements.txt"\n'

THOSE_THAT_SHIP = ["forge-genomics", "forge-ml", "forge-python", "forge-r", "forge-samtools", "forge-singlecell"]


@pytest.fixture
def folder(tmp_path: Path, settings: Settings) -> Path:
    """The folder of a deployment's own runtimes, with one called `mine`."""
    made = tmp_path / "own runtimes"
    (made / "mine").mkdir(parents=True)
    (made / "mine" / "runtime.toml").write_text(GOOD)
    (made / "mine" / "requirements.txt").write_text("# nothing\n")
    return made


@pytest.fixture
def own(settings: Settings, folder: Path) -> Settings:
    return msgspec.structs.replace(settings, runtime_folders=(folder,))


def test_those_that_ship(settings: Settings) -> None:
    assert catalog.runtime_names(settings) == THOSE_THAT_SHIP
    for name in catalog.runtime_names(settings):
        definition = catalog.load_definition(name, settings)
        if definition.kind != "venv":
            assert tomllib.loads(definition.lock_path.read_text())["debian-12"]
            continue
        venv.check_python(definition)
        locked = [line for line in definition.lock_path.read_text().splitlines() if line and not line.startswith((" ", "#"))]
        assert all("==" in line for line in locked)
        assert definition.lock_path.read_text().count("--hash=sha256:") >= len(locked)
        assert "index-url" not in definition.lock_path.read_text()


def test_a_deployments_own(own: Settings) -> None:
    assert catalog.runtime_names(own) == [*THOSE_THAT_SHIP, "mine"]
    assert catalog.load_definition("mine", own).kind == "venv"


@pytest.mark.parametrize("name", ["nosuch", "", "..", "../forge-python", "forge-python/", "Mine", "x" * 5000, "a\nb"])
def test_an_unknown_one_is_named_with_those_that_exist(own: Settings, name: str) -> None:
    with pytest.raises(RuntimeCatalogError, match="no runtime") as caught:
        catalog.load_definition(name, own)
    assert "forge-python" in caught.value.hint and "mine" in caught.value.hint and len(str(caught.value)) < 400


def test_two_with_one_name(own: Settings, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "more"
    shutil.copytree(folder, other)
    with pytest.raises(RuntimeCatalogError, match="Two runtimes are called 'mine'"):
        catalog.runtime_names(msgspec.structs.replace(own, runtime_folders=(folder, other)))


def test_two_that_dagster_could_not_tell_apart(own: Settings, folder: Path) -> None:
    (folder / "mine").rename(folder / "forge_python")
    with pytest.raises(RuntimeCatalogError, match="'forge-python' and 'forge_python' differ in"):
        catalog.runtime_names(own)


def test_one_that_is_called_as_one_that_ships(own: Settings, folder: Path) -> None:
    (folder / "mine").rename(folder / "forge-python")
    with pytest.raises(RuntimeCatalogError, match="Two runtimes are called 'forge-python'"):
        catalog.load_definition("forge-python", own)


def test_a_folder_that_is_not_there(own: Settings, folder: Path) -> None:
    shutil.rmtree(folder)
    with pytest.raises(RuntimeCatalogError, match=r"own runtimes cannot be read"):
        catalog.runtime_names(own)


@pytest.mark.parametrize("name", ["-rf", "..x", "a b", "A", "ö", "x" * 65, "a\nb"])
def test_folders_with_names_that_no_runtime_can_have_are_none(own: Settings, folder: Path, name: str) -> None:
    shutil.copytree(folder / "mine", folder / name)
    assert catalog.runtime_names(own) == [*THOSE_THAT_SHIP, "mine"]


@pytest.mark.parametrize(
    "text",
    [
        "", "kind = ", "kind = 'venv'", GOOD + "kind = 'venv'", GOOD + "colour = 'red'", "kind = 'magic'\nlock = 'requirements.txt'",
        "kind = 5\nlock = 'requirements.txt'", "kind = 'venv'\nlock = 5", "kind = 'venv'\nlock = ['requirements.txt']",
        GOOD + "self_test = 'python x.py'", GOOD + "limits = 5", GOOD + "description = []", "\xff",
    ],
    ids=lambda text: ascii(text)[:40],
)  # fmt: skip
def test_a_definition_that_is_wrong_is_a_sentence_with_its_file(own: Settings, folder: Path, text: str) -> None:
    (folder / "mine/runtime.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(RuntimeCatalogError, match=r"mine/runtime\.toml") as caught:
        catalog.load_definition("mine", own)
    assert "\n" not in str(caught.value)


def test_a_lock_that_is_not_there(own: Settings, folder: Path) -> None:
    (folder / "mine/requirements.txt").unlink()
    with pytest.raises(RuntimeCatalogError, match=r"requirements\.txt, which is not there"):
        catalog.load_definition("mine", own)


@pytest.mark.parametrize("python", [">=99", "<3", "==2.7.*", "nonsense", ">=", "3.11"])
def test_a_lock_for_another_python_is_not_built(own: Settings, folder: Path, python: str) -> None:
    (folder / "mine/runtime.toml").write_text(f"{GOOD}python = '{python}'")
    with pytest.raises(RuntimeCatalogError):
        venv.check_python(catalog.load_definition("mine", own))


class TestBuildId:
    def test_another_lock_another_definition_another_self_test_is_another_build(self, own: Settings, folder: Path) -> None:
        (folder / "mine/runtime.toml").write_text(GOOD + 'self_test = ["python", "t.py"]')
        (folder / "mine/t.py").write_text("pass")

        def build_id() -> str:
            return catalog.build_id(catalog.load_definition("mine", own))

        ids = [build_id(), build_id()]
        assert ids[0] == ids[1]
        (folder / "mine/t.py").write_text("assert True")
        ids.append(build_id())
        (folder / "mine/requirements.txt").write_text("# something\n")
        ids.append(build_id())
        (folder / "mine/runtime.toml").write_text(GOOD)
        ids.append(build_id())
        assert len(set(ids)) == 4


class TestResolve:
    @pytest.fixture
    def home(self, forge_home: Path, tmp_path: Path) -> Settings:
        """A home with a real build of `forge-python` that may be spoilt."""
        copy_runtime(forge_home, tmp_path / "spoilt")
        return load_settings(tmp_path / "spoilt")

    @pytest.fixture
    def build(self, home: Settings) -> Path:
        folder = catalog.build_folder(catalog.load_definition("forge-python", home), home)
        (folder / "verified.json").unlink(missing_ok=True)
        return folder

    def test_a_built_one(self, home: Settings, build: Path) -> None:
        found = catalog.resolve("forge-python", home)
        assert found.prefix == build / "prefix" and found.site_packages.is_dir()
        assert found.activation == {"PATH": "/forge/runtime/bin", "VIRTUAL_ENV": "/forge/runtime"}
        assert len(found.runtime.content_digest) == len(found.runtime.seal_digest) == 64

    def test_one_that_is_not_built(self, settings: Settings) -> None:
        with pytest.raises(RuntimeCatalogError, match="'forge-python' is not built") as caught:
            catalog.resolve("forge-python", settings)
        assert "forge runtimes build forge-python" in caught.value.hint

    def test_one_that_was_edited(self, home: Settings, build: Path) -> None:
        (build / "prefix/lib/evil.pth").write_text("import evil")
        with pytest.raises(RuntimeCatalogError, match=r"lib/evil\.pth was added") as caught:
            catalog.resolve("forge-python", home)
        assert "forge runtimes repair" in caught.value.hint

    @pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"name": 5}'])
    def test_one_whose_facts_are_torn(self, home: Settings, build: Path, content: str) -> None:
        (build / "runtime.json").write_text(content)
        with pytest.raises(RuntimeCatalogError, match=r"runtime\.json cannot be read"):
            catalog.resolve("forge-python", home)

    def test_one_without_its_seal(self, home: Settings, build: Path) -> None:
        (build / "index").unlink()
        (build / "seal.json").unlink()
        with pytest.raises(RuntimeCatalogError, match=r"seal\.json cannot be read"):
            catalog.resolve("forge-python", home)


class Plain:
    """A self-test that is a plain function."""

    def __init__(self, function: Callable[[object, catalog.ResolvedRuntime], None]) -> None:
        self._function = function

    def test(self, definition: object, runtime: catalog.ResolvedRuntime) -> set[str]:
        self._function(definition, runtime)
        return set()

    def activation(self, runtime: object, script: str) -> dict[str, str]:
        raise AssertionError("a venv needs none")


class TestBuild:
    """With a self-test that is a plain function: what a sandboxed one proves is tested through the command."""

    def build(self, own: Settings, **options) -> catalog.Runtime:
        return building.build("mine", own, Plain(options.pop("self_test", lambda definition, runtime: None)), **options)

    def test_it_is_built_once_and_then_reused(self, own: Settings) -> None:
        first = self.build(own)
        assert self.build(own) == first
        assert self.build(own, force=True).built_at > first.built_at
        assert catalog.resolve("mine", own).runtime.content_digest == first.content_digest

    def test_one_that_was_spoilt_is_built_again(self, own: Settings) -> None:
        first = self.build(own)
        prefix = catalog.build_folder(catalog.load_definition("mine", own), own) / "prefix"
        (prefix / "evil").touch()
        assert self.build(own).built_at > first.built_at
        assert not (prefix / "evil").exists()

    def test_one_that_fails_its_self_test_is_never_there(self, own: Settings) -> None:
        def failing(definition: object, runtime: object) -> None:
            raise RuntimeCatalogError("It does not work.")

        with pytest.raises(RuntimeCatalogError, match="does not work"):
            self.build(own, self_test=failing)
        self.nothing_is_left(own)

    def test_a_self_test_that_changes_the_runtime_fails_it(self, own: Settings) -> None:
        def vandal(definition: object, runtime: catalog.ResolvedRuntime) -> None:
            (runtime.prefix / "bin" / "extra").touch()

        with pytest.raises(RuntimeCatalogError, match="changed during its self-test: bin/extra was added"):
            self.build(own, self_test=vandal)
        self.nothing_is_left(own)

    def test_a_failing_build_leaves_the_one_that_is_there(self, own: Settings) -> None:
        first = self.build(own)

        def failing(definition: object, runtime: object) -> None:
            raise RuntimeCatalogError("no")

        with pytest.raises(RuntimeCatalogError):
            self.build(own, self_test=failing, force=True)
        assert catalog.resolve("mine", own).runtime == first

    def test_a_lock_without_hashes_is_refused(self, own: Settings, folder: Path) -> None:
        (folder / "mine/requirements.txt").write_text("six==1.16.0\n")
        with pytest.raises(RuntimeCatalogError, match=r"uv pip failed.*hash"):
            self.build(own)
        self.nothing_is_left(own)

    def test_what_a_killed_build_left_is_removed(self, own: Settings) -> None:
        left = own.runtimes_dir / ".building" / "mine.abcdef"
        (left / "prefix").mkdir(parents=True)
        self.build(own)
        assert not left.exists()

    def test_others_cannot_enter_and_executions_can_read_what_is_in_it(self, own: Settings) -> None:
        before = os.umask(0o077)
        try:
            self.build(own)
        finally:
            os.umask(before)
        folder = catalog.build_folder(catalog.load_definition("mine", own), own)
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in [folder / "prefix", *(folder / "prefix").rglob("*")]:
            mode = path.lstat().st_mode
            assert path.is_symlink() or (mode & 0o022 == 0 and mode & 0o004), path

    def nothing_is_left(self, own: Settings) -> None:
        assert catalog.load_build(catalog.build_folder(catalog.load_definition("mine", own), own)) is None
        assert [path.name for path in (own.runtimes_dir / ".building").iterdir()] == ["mine.lock"]


def test_a_build_that_is_killed_while_it_takes_the_place_leaves_one_there(own: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of it the new one is in place, and the old one aside: that one may be mounted, and is retired and not deleted."""
    first = building.build("mine", own, Plain(lambda definition, runtime: None))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(building.retention, "retire", killed)
        patch.setattr(building.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            building.build("mine", own, Plain(lambda definition, runtime: None), force=True)
    second = catalog.resolve("mine", own).runtime
    assert second.built_at > first.built_at
    (left,) = building.remove_leftovers("mine", own)
    (retired,) = (own.runtimes_dir / ".retired").iterdir()
    assert left.startswith("mine.") and catalog.load_build(retired) == first
