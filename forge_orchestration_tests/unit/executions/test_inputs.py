"""Inputs: what may be bound into a sandbox, and what its digest is."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path

import pytest

from forge_orchestration.errors import SpecError
from forge_orchestration.executions.inputs import ResolvedInput, has_changed, resolve_input, resolve_inputs
from forge_orchestration.settings import Settings
from forge_orchestration_tests.conftest import prerequisite


class Digests:
    """A digest cache in memory that counts."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], str] = {}
        self.found = 0

    def digest(self, facts: os.stat_result) -> str | None:
        known = self.kept.get(self._key(facts))
        self.found += known is not None
        return known

    def keep_digest(self, facts: os.stat_result, sha256: str) -> None:
        self.kept[self._key(facts)] = sha256

    def _key(self, facts: os.stat_result) -> tuple[int, ...]:
        return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@pytest.fixture
def data(settings: Settings) -> Path:
    (root,) = settings.allowed_input_roots
    return root


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "runtime" / "site-packages"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "data.csv").write_text("shipped")
    return folder


@pytest.fixture
def resolve(settings: Settings, packages: Path):
    def call(source: str | Path, name: str = "x", *, cache: Digests | None = None) -> ResolvedInput:
        return resolve_input(name, str(source), settings, packages, cache or Digests())

    return call


def refused(resolve, source: str | Path, words: str, **options) -> SpecError:
    with pytest.raises(SpecError, match=words) as caught:
        resolve(source, **options)
    assert "'x'" in caught.value.message and "\n" not in str(caught.value)
    return caught.value


class TestGood:
    @pytest.mark.parametrize("name", ["a.csv", "-rf", "a b'\"", "ö解💥", "a\nb", "x" * 255])
    def test_a_file(self, resolve, data: Path, name: str) -> None:
        path = data / name
        path.write_text("1,2\n")
        found = resolve(path)
        assert (found.path, found.facts.source, found.facts.name) == (str(path), str(path), "x")
        assert (found.facts.sha256, found.facts.bytes) == (hashlib.sha256(b"1,2\n").hexdigest(), 4)
        assert (found.device, found.inode) == (path.stat().st_dev, path.stat().st_ino)

    def test_a_link_to_a_file_inside_is_that_file(self, resolve, data: Path) -> None:
        (data / "a").write_text("x")
        os.symlink("a", data / "link")
        assert resolve(data / "link").path == str(data / "a")

    def test_dots_that_stay_inside(self, resolve, data: Path) -> None:
        (data / "a").write_text("x")
        (data / "b").mkdir()
        assert resolve(f"{data}/b/../a").path == str(data / "a")

    def test_a_home_folder(self, resolve, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(data))
        (data / "a").write_text("x")
        assert resolve("~/a").path == str(data / "a")

    def test_a_relative_path(self, resolve, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(data)
        (data / "a").write_text("x")
        assert resolve("a").path == str(data / "a")

    def test_an_empty_file(self, resolve, data: Path) -> None:
        (data / "a").touch()
        assert resolve(data / "a").facts.sha256 == hashlib.sha256(b"").hexdigest()

    def test_a_file_of_the_runtime(self, resolve, packages: Path) -> None:
        found = resolve("package://pkg/data.csv")
        assert found.path == str(packages / "pkg/data.csv") and found.facts.source == "package://pkg/data.csv"

    def test_a_folder_with_everything_in_it(self, resolve, data: Path) -> None:
        folder = data / "folder"
        (folder / "sub").mkdir(parents=True)
        (folder / "a").write_text("1")
        (folder / "sub" / "b\n").write_text("22")
        first = resolve(folder)
        assert first.facts.bytes == 3
        assert resolve(folder).facts.sha256 == first.facts.sha256
        (folder / "sub" / "b\n").rename(folder / "sub" / "c")
        assert resolve(folder).facts.sha256 != first.facts.sha256

    def test_links_in_a_folder_are_part_of_its_digest_and_never_followed(self, resolve, data: Path) -> None:
        folder = data / "folder"
        folder.mkdir()
        digests = {resolve(folder).facts.sha256}
        for aim in ("/etc/passwd", "/etc/shadow", "nothing"):
            os.symlink(aim, folder / "link")
            digests.add(resolve(folder).facts.sha256)
            os.unlink(folder / "link")
        assert len(digests) == 4

    def test_a_folder_that_is_linked_into_a_folder_is_part_of_its_digest(self, resolve, data: Path) -> None:
        """Where a link points changes what an analysis sees, also if it points to a folder."""
        folder = data / "folder"
        (folder / "one").mkdir(parents=True)
        (folder / "two").mkdir()
        os.symlink("one", folder / "current")
        first = resolve(folder).facts.sha256
        os.unlink(folder / "current")
        os.symlink("two", folder / "current")
        assert resolve(folder).facts.sha256 != first

    def test_an_empty_folder_inside_is_part_of_a_folder(self, resolve, data: Path) -> None:
        folder = data / "folder"
        folder.mkdir()
        first = resolve(folder).facts.sha256
        (folder / "empty").mkdir()
        assert resolve(folder).facts.sha256 != first


class TestRefused:
    @pytest.mark.parametrize("source", ["/etc/passwd", "/", "/proc/self/environ", "/root", "/dev/null", "/sys/kernel", "."])
    def test_outside_of_the_roots(self, resolve, source: str, data: Path) -> None:
        error = refused(resolve, source, "is not in")
        assert str(data) in error.hint

    def test_dots_that_lead_out(self, resolve, data: Path) -> None:
        refused(resolve, f"{data}/../home ö/store.db", "is not in")
        refused(resolve, f"{data}/../../../../../../etc/passwd", "is not in")

    def test_a_link_that_leads_out(self, resolve, data: Path) -> None:
        os.symlink("/etc/passwd", data / "link")
        os.symlink("/etc", data / "folder")
        refused(resolve, data / "link", "is not in")
        refused(resolve, data / "folder" / "passwd", "is not in")

    def test_a_sibling_whose_name_begins_the_same(self, resolve, data: Path) -> None:
        other = data.with_name(data.name + "-secret")
        other.write_text("x")
        refused(resolve, other, "is not in")

    def test_the_parent_of_the_roots(self, resolve, data: Path) -> None:
        refused(resolve, data.parent, "is not in")

    def test_missing(self, resolve, data: Path) -> None:
        refused(resolve, data / "nothing", "No such file")
        os.symlink("nothing", data / "dangling")
        refused(resolve, data / "dangling", "No such file")
        (data / "a").touch()
        refused(resolve, data / "a" / "b", "Not a directory")

    def test_a_link_to_itself(self, resolve, data: Path) -> None:
        os.symlink("loop", data / "loop")
        refused(resolve, data / "loop", "link")

    def test_a_name_that_is_too_long(self, resolve, data: Path) -> None:
        refused(resolve, data / ("x" * 5000), "cannot be read")

    def test_a_nul_byte(self, resolve, data: Path) -> None:
        with pytest.raises(SpecError):
            resolve(f"{data}/a\0b")

    @pytest.mark.timeout(10)
    def test_a_fifo(self, resolve, data: Path) -> None:
        os.mkfifo(data / "f", 0o666)
        refused(resolve, data / "f", "is a FIFO")

    @pytest.mark.timeout(10)
    def test_a_fifo_in_a_folder(self, resolve, data: Path) -> None:
        (data / "folder" / "sub").mkdir(parents=True)
        os.mkfifo(data / "folder" / "sub" / "pi'pe", 0o666)
        with pytest.raises(SpecError, match="pi'pe"):
            resolve(data / "folder")

    def test_a_socket(self, resolve, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(data)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("s")
            refused(resolve, data / "s", "is a socket")

    def test_devices(self, resolve, data: Path) -> None:
        prerequisite(os.geteuid() == 0, "devices can be made by root only")
        os.mknod(data / "zero", 0o20666, os.makedev(1, 5))
        os.mknod(data / "disk", 0o60666, os.makedev(7, 0))
        refused(resolve, data / "zero", "is a device")
        refused(resolve, data / "disk", "is a device")

    @pytest.mark.parametrize("mode", [0o000, 0o600, 0o640, 0o660])
    def test_a_file_that_another_uid_cannot_read_has_an_owner(self, resolve, data: Path, mode: int) -> None:
        """To be mounted with the execution in the owner's place; its bytes are read with this process' rights."""
        prerequisite(os.geteuid() == 0, "a file that its owner may not read either can be read by root only")
        (data / "a").write_text("x")
        os.chown(data / "a", 1234, 4321)
        os.chmod(data / "a", mode)
        assert resolve(data / "a").owner == (1234, 4321)

    @pytest.mark.parametrize("mode", [0o700, 0o704, 0o701])
    def test_a_folder_that_another_uid_cannot_enter_has_an_owner(self, resolve, data: Path, mode: int) -> None:
        (data / "a").mkdir()
        os.chmod(data / "a", mode)
        assert resolve(data / "a").owner == (os.geteuid(), os.getegid())

    def test_a_link_put_in_the_way_after_links_were_resolved(self, resolve, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The race that openat2 closes: what was a folder when the path was looked at is a link when it is opened."""
        (data / "f").mkdir()
        (data / "f" / "a").write_text("x")
        (data / "elsewhere").mkdir()
        (data / "elsewhere" / "a").write_text("y")
        real = os.path.realpath

        def swapped(path: str | Path) -> str:
            found = real(path)
            if str(path).endswith("f/a"):
                os.rename(data / "f", data / "g")
                os.symlink(data / "elsewhere", data / "f")
            return found

        monkeypatch.setattr(os.path, "realpath", swapped)
        refused(resolve, data / "f" / "a", "cannot be read")

    def test_what_everybody_may_read(self, resolve, data: Path) -> None:
        (data / "a").write_text("x")
        os.chmod(data / "a", 0o404)
        found = resolve(data / "a")
        assert (found.facts.bytes, found.owner) == (1, None)

    @pytest.mark.parametrize("kind", ["file", "folder", "folder above"])
    def test_what_we_cannot_read(self, resolve, data: Path, kind: str, as_nobody) -> None:
        (data / "f").mkdir()
        (data / "f" / "a").write_text("x")
        os.chmod(data / "f" / "a" if kind == "file" else data / "f", 0)
        source = data / "f" if kind == "folder" else data / "f" / "a"

        def attempt() -> str:
            with pytest.raises(SpecError) as caught:
                resolve(source)
            return str(caught.value)

        said = as_nobody(attempt)
        os.chmod(data / "f", 0o700)
        assert "Permission denied" in said and "'x'" in said

    @pytest.mark.parametrize("name", ["", "a/b", "..", ".", "a b", "-x", "ö", "a\nb", "x" * 200, "a\0", "../../etc"])
    def test_names_that_are_no_file_names(self, resolve, data: Path, name: str) -> None:
        (data / "a").write_text("x")
        with pytest.raises(SpecError, match="input's name"):
            resolve(data / "a", name)


class TestPackage:
    @pytest.mark.parametrize(
        "source",
        [
            "package://../../home ö/store.db",
            "package://pkg/../../../data",
            "package:///etc/passwd",
            "package://..",
            "package://~/x",
        ],
    )
    def test_no_way_out_of_the_packages(self, resolve, source: str) -> None:
        with pytest.raises(SpecError):
            resolve(source)

    def test_a_link_out_of_the_packages(self, resolve, packages: Path) -> None:
        os.symlink("/etc/passwd", packages / "link")
        refused(resolve, "package://link", "is not in the runtime's packages")


class TestTheAnalysisOwn:
    """The files beside an analysis' script are copied for it anyway: they need no root, and open nothing else."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "opt" / "islands"
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "islands.bed").write_text("chr1")
        (folder / ".git").mkdir()
        (folder / ".git" / "config").write_text("url = https://user:token@host")
        (folder.parent / "islands_of_others").mkdir()
        (folder.parent / "islands_of_others" / "secret").write_text("x")
        return folder

    def test_its_files(self, settings: Settings, folder: Path) -> None:
        source = str(folder / "data" / "islands.bed")
        assert resolve_input("x", source, settings, None, Digests(), str(folder)).path == source

    def test_of_another_analysis(self, settings: Settings, folder: Path) -> None:
        with pytest.raises(SpecError, match="is not in the folders"):
            resolve_input("x", str(folder / "data" / "islands.bed"), settings, None, Digests())

    @pytest.mark.parametrize("way", ["../islands_of_others/secret", "link", "../../opt", "/etc/passwd", ".git/config", ".", "data"])
    def test_no_way_out(self, settings: Settings, folder: Path, way: str) -> None:
        os.symlink("../islands_of_others/secret", folder / "link")
        with pytest.raises(SpecError, match="is not in the folders"):
            resolve_input("x", os.path.join(folder, way), settings, None, Digests(), str(folder))


class TestForgesOwn:
    """A deployment may allow roots that hold its own home: what lies in there is still nobody's input."""

    @pytest.fixture
    def resolve(self, tmp_path: Path, packages: Path):
        from forge_orchestration.settings import load_settings, make_home

        home = tmp_path / "data" / "forge"
        home.mkdir(parents=True)
        (home / "settings.toml").write_text(f'allowed_input_roots = ["{tmp_path}/data"]\n')
        settings = load_settings(home)
        make_home(settings)
        (home / "store.db").write_text("rows")
        (home / "runtimes" / "r").write_text("x")
        outputs = home / "executions" / "20260102T030405678-9f86d081" / "outputs"
        outputs.mkdir(parents=True)
        (outputs.parent / "record.json").write_text("{}")
        (outputs / "a.csv").write_text("earlier result")
        return lambda source, **_: resolve_input("x", str(source), settings, packages, Digests())

    @pytest.mark.parametrize(
        "beneath",
        ["", "store.db", "settings.toml", "runtimes", "runtimes/r", "scratch", "executions", "executions/20260102T030405678-9f86d081",
         "executions/20260102T030405678-9f86d081/record.json", "executions/20260102T030405678-9f86d081/outputs/../record.json"],
    )  # fmt: skip
    def test_its_files_and_folders(self, resolve, tmp_path: Path, beneath: str) -> None:
        refused(resolve, tmp_path / "data/forge" / beneath, "is not in")

    def test_a_folder_that_holds_it(self, resolve, tmp_path: Path) -> None:
        refused(resolve, tmp_path / "data", "is not in")

    def test_a_link_to_it(self, resolve, tmp_path: Path) -> None:
        os.symlink(tmp_path / "data/forge/store.db", tmp_path / "data/innocent")
        refused(resolve, tmp_path / "data/innocent", "is not in")

    def test_an_earlier_executions_output_is_a_fine_input(self, resolve, tmp_path: Path) -> None:
        found = resolve(tmp_path / "data/forge/executions/20260102T030405678-9f86d081/outputs/a.csv")
        assert found.facts.bytes == len("earlier result")


def settle() -> None:
    """Until a change would be told by a file's times: until then nothing is remembered of it."""
    time.sleep(0.15)


class TestCache:
    def test_what_was_written_just_now_is_not_remembered(self, resolve, data: Path) -> None:
        """A second write may come in the same tick of the file system's clock, and leave all that `stat` says as it was."""
        cache = Digests()
        (data / "a").write_text("x")
        os.utime(data / "a", ns=(0, 0))  # what is older is its content's time alone
        first = resolve(data / "a", cache=cache)
        assert resolve(data / "a", cache=cache).facts == first.facts and cache.found == 0

    def test_what_is_written_to_while_it_is_read_is_refused(self, resolve, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (data / "a").write_text("x")
        read = hashlib.file_digest

        def slowly(file, algorithm):
            digest = read(file, algorithm)
            (data / "a").write_text("xy")
            return digest

        monkeypatch.setattr(hashlib, "file_digest", slowly)
        with pytest.raises(SpecError, match=r"Input 'x' .*was changed while it was read\. Try again"):
            resolve(data / "a", cache=Digests())

    @pytest.mark.parametrize(
        "change",
        [
            "longer",
            "same size",
            "replaced",
            "gone",
            "in a folder",
            "more in a folder",
            "touched",
            "changed and back",
            "changed and back in a folder",
        ],
    )
    def test_a_change_after_that_is_seen(self, resolve, data: Path, change: str) -> None:
        cache = Digests()
        (data / "f").mkdir()
        for name in ("a", "f/b"):
            (data / name).write_text("x")
        settle()
        file, folder = resolve(data / "a", cache=cache), resolve(data / "f", cache=cache)
        assert not has_changed(file, cache) and not has_changed(folder, cache)
        if change == "touched":
            os.utime(data / "a", ns=(1, 1))
        elif change == "changed and back":  # what was read in between nobody knows
            (data / "a").write_text("y")
            (data / "a").write_text("x")
        elif change == "changed and back in a folder":
            (data / "f/b").rename(data / "f/c")
            (data / "f/b").write_text("x")
            (data / "f/c").unlink()
        elif change == "longer":
            (data / "a").write_text("xy")
        elif change == "same size":
            (data / "a").write_text("y")
        elif change == "replaced":
            (data / "b").write_text("x")
            (data / "b").rename(data / "a")
        elif change == "gone":
            (data / "a").unlink()
        elif change == "in a folder":
            (data / "f/b").write_text("y")
        else:
            (data / "f/c").write_text("")
        assert has_changed(file, cache) is ("folder" not in change)
        assert has_changed(folder, cache) is ("folder" in change)

    def test_a_file_is_read_once(self, resolve, data: Path) -> None:
        cache = Digests()
        (data / "a").write_text("x")
        settle()
        first, second = resolve(data / "a", cache=cache), resolve(data / "a", cache=cache)
        assert first.facts == second.facts and cache.found == 1

    def test_an_edit_of_the_same_size_is_seen(self, resolve, data: Path) -> None:
        cache = Digests()
        (data / "a").write_text("x")
        facts = (data / "a").stat()
        settle()
        first = resolve(data / "a", cache=cache).facts.sha256
        (data / "a").write_text("y")
        os.utime(data / "a", ns=(facts.st_atime_ns, facts.st_mtime_ns))  # only the change time tells them apart
        assert resolve(data / "a", cache=cache).facts.sha256 != first

    def test_the_files_of_a_folder_are_remembered(self, resolve, data: Path) -> None:
        cache = Digests()
        (data / "f").mkdir()
        (data / "f/a").write_text("x")
        settle()
        resolve(data / "f", cache=cache)
        resolve(data / "f", cache=cache)
        assert cache.found == 1


class TestAFileByItsContent:
    def test_is_that_file(self, resolve, data: Path) -> None:
        (data / "a b.csv").write_text("1,2\n")
        source = f"file://{data}/a%20b.csv#sha256={hashlib.sha256(b'1,2' + os.linesep.encode()).hexdigest()}"
        found = resolve(source)
        assert found.path == str(data / "a b.csv") and found.facts.source == source

    def test_that_it_is_not(self, resolve, data: Path) -> None:
        (data / "a.csv").write_text("1,3\n")
        refused(resolve, f"file://{data}/a.csv#sha256={'0' * 64}", "is not what was declared: its sha256 is .*, and should be 0000")

    @pytest.mark.parametrize("source", ["file:///data/a.csv", "file://a.csv#sha256=" + "0" * 64, "file:///a#sha256=abc"])
    def test_that_says_too_little(self, resolve, source: str) -> None:
        refused(resolve, source, "does not say where it is, or what its content is")

    def test_may_be_nowhere_else_than_others(self, resolve) -> None:
        refused(resolve, f"file:///etc/hostname#sha256={'0' * 64}", "is not in the folders that inputs may come from")


class TestPatterns:
    @pytest.fixture
    def files(self, settings: Settings, data: Path):
        for path in ("a.fastq", "b.fastq", "b.txt", "s1/reads.fastq", "s2/deep/reads.fastq", "s[1]/x"):
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (data / path).write_text(path)

        def call(pattern: str) -> dict[str, str]:
            found = resolve_inputs("x", pattern, settings, None, Digests())
            assert all(one.name == one.facts.name and one.path == one.facts.source for one in found)
            return {one.name: Path(one.path).read_text() for one in found}

        return call

    @pytest.mark.parametrize(("pattern", "expected"), [
        ("*.fastq", {"x/a.fastq": "a.fastq", "x/b.fastq": "b.fastq"}),
        ("s*/reads.fastq", {"x/s1/reads.fastq": "s1/reads.fastq"}),
        ("**/*.fastq", {"x/a.fastq": "a.fastq", "x/b.fastq": "b.fastq", "x/s1/reads.fastq": "s1/reads.fastq", "x/s2/deep/reads.fastq": "s2/deep/reads.fastq"}),
        ("[ab].txt", {"x/b.txt": "b.txt"}),
        ("s[1]/x", {"x": "s[1]/x"}),
    ])  # fmt: skip
    def test_each_file(self, files, data: Path, pattern: str, expected: dict[str, str]) -> None:
        assert files(f"{data}/{pattern}") == expected

    def test_none_is_refused(self, files, data: Path) -> None:
        with pytest.raises(SpecError, match=r"Input 'x' .*\*.bam\) cannot be read: there is no such file"):
            files(f"{data}/*.bam")

    def test_more_than_can_be_mounted_are_refused(self, files, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("forge_orchestration.executions.inputs._MOST_FILES", 1)
        with pytest.raises(SpecError, match="is more than 1 files. Name the folder that they are in"):
            files(f"{data}/*.fastq")

    def test_lead_nowhere_else_than_paths(self, files, data: Path) -> None:
        (data / "evil.fastq").symlink_to("/etc/hostname")
        with pytest.raises(SpecError, match=r"\*.fastq\) stands for files that are not in the folders"):
            files(f"{data}/*.fastq")
        for pattern in ("/etc/host*", "/etc/none*"):  # whether there is one is not told
            with pytest.raises(SpecError, match="stands for files that are not in the folders"):
                files(pattern)

    def test_that_a_link_leads_elsewhere_does_not_tell_what_is_there(self, files, data: Path) -> None:
        (data / "way").symlink_to("/etc")
        with pytest.raises(SpecError) as caught:
            files(f"{data}/way/host*")
        assert "hostname" not in str(caught.value) and "stands for files" in str(caught.value)
