"""The workspace: exactly as large as its limit, owned by its execution, gone without a trace."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forge_orchestration.errors import SandboxError
from forge_orchestration.sandbox import scratch
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.scratch import (
    FolderWorkspace,
    LoopWorkspace,
    Size,
    folder_bytes,
    folder_files,
    formatted_template,
    remove_tree,
)
from forge_orchestration.sandbox.view import WORKSPACE
from forge_orchestration_tests.conftest import prerequisite
from forge_orchestration_tests.unit.conftest import DeepFolder

MIB = 2**20
SIZE = Size(bytes=MIB, files=1000)
EIGHT = Size(bytes=8 * MIB, files=1000)
USER = Identity(mode="user_namespace", uid=os.geteuid(), gid=os.getegid())
OWN_UID = Identity(mode="own_uid", uid=1_879_000_001, gid=1_879_000_001)

# run in a mount namespace of its own, as a supervisor is; says what it saw in one line
EXACT = """
import os, sys
from pathlib import Path
from forge_orchestration.sandbox import linux
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.scratch import LoopWorkspace, Size
base, limit = Path(sys.argv[1]), int(sys.argv[2])
linux.unshare_mounts()
workspace = LoopWorkspace(base, Size(bytes=limit, files=300))
enforced = workspace.create(Identity(mode="own_uid", uid=1879000001, gid=1879000001))
full_at_start = workspace.is_full()
pid = os.fork()
if pid == 0:
    os.chdir(base / "workspace/scratch")  # root enters; the execution's uid then writes
    os.setgroups([]); os.setgid(1879000001); os.setuid(1879000001)
    written = 0
    with open("fill", "wb", buffering=0) as file:
        try:
            while True:
                written += file.write(b"x" * 65536)
        except OSError as error:
            number = error.errno
    print("written", written, "errno", number, flush=True)
    os.unlink("fill")
    made = 0
    try:
        while True:
            os.symlink("x", f"l{made}")
            made += 1
    except OSError as error:
        number = error.errno
    print("made", made, "errno", number, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
print("enforced", int(enforced["scratch_bytes"].value), "full", full_at_start, workspace.is_full(), int(enforced["files"].value), flush=True)
freed, mounts = workspace.remove()
again = workspace.remove()
print("freed", freed, "mounts", mounts, "again", again[1], "left", sorted(os.listdir(base)), flush=True)
"""


@pytest.fixture
def as_root(forge_home: Path) -> None:
    prerequisite(os.geteuid() == 0, "a file system of its own needs root")
    prerequisite(os.path.exists("/dev/loop-control"), "there are no loop devices")


@pytest.mark.usefixtures("as_root")
class TestLoop:
    @pytest.mark.parametrize("limit", [MIB, 5 * MIB, 64 * MIB, 64 * MIB + 4096 * 3])
    def test_the_execution_can_write_what_its_limit_says_and_not_a_block_more(self, tmp_path: Path, limit: int) -> None:
        done = subprocess.run(
            [sys.executable, "-c", EXACT, tmp_path, str(limit)], capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        written, made, enforced, freed = (line.split() for line in done.stdout.splitlines())
        assert written[3] == str(errno.ENOSPC)
        # of what it is allowed, a file system takes a few blocks to know where the file's lie
        assert limit - max(64 * 1024, limit // 64) <= int(written[1]) <= limit
        assert limit <= int(enforced[1]) <= limit + 16 * 4096
        assert enforced[3:5] == ["False", "True"]
        # 256 is the least: a workspace of 1 MiB has no room for the blocks of more
        assert int(made[1]) == int(enforced[5]) and 256 <= int(made[1]) <= 304 and made[3] == str(errno.ENOSPC)
        assert int(freed[1]) > 0 and freed[3:6] == ["1", "again", "0"]
        assert freed[7:] == ["['templates',", "'workspace']"]

    def test_a_template_is_made_once_a_size(self, tmp_path: Path) -> None:
        first = formatted_template(tmp_path / "t", EIGHT)
        facts = first.stat()
        assert formatted_template(tmp_path / "t", EIGHT).stat().st_mtime_ns == facts.st_mtime_ns
        assert formatted_template(tmp_path / "t", Size(bytes=8 * MIB, files=100)) != first
        assert sorted(os.listdir(tmp_path / "t")) == [f"{8 * MIB}-100.img", f"{8 * MIB}-1000.img"]

    def test_a_template_is_sparse(self, tmp_path: Path) -> None:
        facts = formatted_template(tmp_path / "t", Size(bytes=2048 * MIB, files=131_072)).stat()
        assert facts.st_size >= 2048 * MIB and facts.st_blocks * 512 < 4 * MIB

    def test_without_the_tools_there_is_a_sentence_and_no_half_template(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scratch, "_MKFS", ("mkfs.nosuch",))
        with pytest.raises(SandboxError, match="not installed") as caught:
            formatted_template(tmp_path / "t", EIGHT)
        assert "apt-get" in caught.value.hint and os.listdir(tmp_path / "t") == []

    def test_removing_one_that_was_never_made(self, tmp_path: Path) -> None:
        assert LoopWorkspace(tmp_path, SIZE).remove() == (0, 0)


class TestFolder:
    def test_its_folders_are_closed_to_others(self, tmp_path: Path) -> None:
        workspace = FolderWorkspace(tmp_path / "w", SIZE)
        workspace.create(USER)
        assert sorted(os.listdir(tmp_path / "w")) == sorted([*WORKSPACE, "messages"])
        assert all((tmp_path / "w" / name).stat().st_mode & 0o777 == 0o700 for name in WORKSPACE)

    def test_it_is_full_when_what_is_in_it_reaches_the_limit(self, tmp_path: Path) -> None:
        workspace = FolderWorkspace(tmp_path / "w", SIZE)
        workspace.create(USER)
        assert not workspace.is_full()
        (tmp_path / "w/outputs/a").write_bytes(b"x" * 2 * MIB)
        assert workspace.is_full(at_the_end=True)
        assert workspace.peak.value >= 2 * MIB

    def test_it_is_full_when_there_are_too_many_files_in_it(self, tmp_path: Path) -> None:
        workspace = FolderWorkspace(tmp_path / "w", Size(bytes=64 * MIB, files=100))
        workspace.create(USER)
        for number in range(100):
            (tmp_path / "w/tmp" / str(number)).touch()
        assert workspace.is_full(at_the_end=True)
        assert workspace.peak_files >= 100

    def test_a_sparse_file_is_what_is_allocated(self, tmp_path: Path) -> None:
        workspace = FolderWorkspace(tmp_path / "w", SIZE)
        workspace.create(USER)
        with open(tmp_path / "w/scratch/a", "wb") as file:
            file.truncate(2**40)
        assert not workspace.is_full(at_the_end=True)

    def test_it_is_removed_however_often(self, tmp_path: Path) -> None:
        workspace = FolderWorkspace(tmp_path / "w", SIZE)
        workspace.create(USER)
        (tmp_path / "w/tmp/a").write_bytes(b"x" * 100_000)
        assert workspace.remove()[0] >= 100_000
        assert workspace.remove() == (0, 0)
        assert not (tmp_path / "w").exists()

    def test_one_that_is_there_is_never_used(self, tmp_path: Path) -> None:
        (tmp_path / "w").mkdir()
        with pytest.raises(FileExistsError):
            FolderWorkspace(tmp_path / "w", SIZE).create(USER)


class TestRemoveTree:
    def test_links_are_removed_and_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret/a").write_text("keep")
        (tmp_path / "w").mkdir()
        os.symlink(tmp_path / "secret", tmp_path / "w/folder")
        os.symlink(tmp_path / "secret/a", tmp_path / "w/file")
        os.symlink("nothing", tmp_path / "w/dangling")
        os.link(tmp_path / "secret/a", tmp_path / "w/hard")
        os.mkfifo(tmp_path / "w/fifo")
        remove_tree(tmp_path / "w")
        assert not (tmp_path / "w").exists()
        assert (tmp_path / "secret/a").read_text() == "keep"

    def test_hostile_names(self, tmp_path: Path) -> None:
        (tmp_path / "w").mkdir()
        for name in (b"-rf", b"a\nb", b"\xff\xfe", b"x" * 255, b" ", "ö💥".encode()):
            open(os.path.join(os.fsencode(tmp_path / "w"), name), "wb").close()
        remove_tree(tmp_path / "w")
        assert not (tmp_path / "w").exists()

    def test_folders_deeper_than_any_recursion_goes(self, tmp_path: Path, deep_folder: DeepFolder) -> None:
        """An analysis can make them in a second; a removal that fails leaves them there for ever."""
        (tmp_path / "w").mkdir()
        deep_folder(tmp_path / "w", "d", sys.getrecursionlimit() + 500)
        remove_tree(tmp_path / "w")
        assert not (tmp_path / "w").exists()

    def test_paths_longer_than_the_kernel_takes(self, tmp_path: Path, deep_folder: DeepFolder) -> None:
        (tmp_path / "w").mkdir()
        deep_folder(tmp_path / "w", "d" * 250, 40)
        remove_tree(tmp_path / "w")
        assert not (tmp_path / "w").exists()

    def test_folders_that_their_owner_closed(self, tmp_path: Path, as_nobody) -> None:
        """As the user who runs Forge without root: root is not stopped by modes."""
        (tmp_path / "w/a/b").mkdir(parents=True)
        (tmp_path / "w/a/b/file").touch()
        (tmp_path / "w/c").mkdir()
        (tmp_path / "w/c/file").touch()

        def close_and_remove() -> str:
            for name in ("w/a/b", "w/a", "w/c"):
                os.chmod(tmp_path / name, 0)
            remove_tree(tmp_path / "w")
            return "removed"

        assert as_nobody(close_and_remove) == "removed"
        assert not (tmp_path / "w").exists()

    def test_nothing_to_remove(self, tmp_path: Path) -> None:
        remove_tree(tmp_path / "nothing")


def test_bytes_are_counted_however_deep_they_lie(tmp_path: Path, deep_folder: DeepFolder) -> None:
    """Or an ordinary user's analysis could hide what it writes from its limit, beneath a path of more than 4096 bytes."""
    (tmp_path / "w").mkdir()
    deep_folder(tmp_path / "w", "d" * 200, 30)
    before = folder_bytes(tmp_path / "w")
    path, fd = "/".join(["d" * 200] * 15), os.open(tmp_path / "w", os.O_RDONLY)
    for _ in range(2):
        fd = os.open(path, os.O_RDONLY, dir_fd=fd)
    with open(os.open("deep.txt", os.O_WRONLY, dir_fd=fd), "wb") as file:
        file.write(b"x" * 5 * MIB)
    assert folder_bytes(tmp_path / "w") - before >= 5 * MIB


def test_bytes_of_a_folder_count_blocks_and_follow_no_link(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_bytes(b"x" * 100_000)
    (tmp_path / "big").write_bytes(b"x" * 10 * MIB)
    os.symlink(tmp_path / "big", tmp_path / "a/link")
    os.symlink(tmp_path, tmp_path / "a/up")
    assert 100_000 <= folder_bytes(tmp_path / "a") < 200_000
    assert folder_bytes(tmp_path / "nothing") == 0
    assert (folder_files(tmp_path / "a"), folder_files(tmp_path / "nothing")) == (5, 0)
