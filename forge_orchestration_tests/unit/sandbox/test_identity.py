"""A uid for each execution: never shared, never taken from one whose processes still run, given back at the end."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from forge_orchestration.errors import SandboxError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.model.sections import IdentitySettings
from forge_orchestration.sandbox import identity, linux
from forge_orchestration.sandbox.identity import Claim, Identity, uid_in_use
from forge_orchestration.sandbox.process_identity import ProcessIdentity, read_supervisor

RANGE = IdentitySettings(first_uid=1_879_900_000, count=3)


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(identity, "CLAIMS", tmp_path / "uids")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path / "uids"


def test_a_claim_is_written_while_it_holds_and_given_back(claims: Path) -> None:
    claim = Claim(RANGE, "one")
    mine = claim.identity
    assert mine.mode == "own_uid" and RANGE.first_uid <= mine.uid < RANGE.first_uid + RANGE.count
    assert (claims / str(mine.uid)).read_text() == "one"
    claim.hand_over("another, and longer")
    assert (claims / str(mine.uid)).read_text() == "another, and longer"
    claim.hand_over("x")
    assert (claims / str(mine.uid)).read_text() == "x"
    claim.release(ended=True)
    assert os.listdir(claims) == []
    claim.release(ended=True)


def test_no_two_share_one(claims: Path) -> None:
    three = [Claim(RANGE, "one"), Claim(RANGE, "one"), Claim(RANGE, "three")]
    assert len({claim.identity.uid for claim in three}) == 3
    with pytest.raises(SandboxError, match="All uids") as caught:
        Claim(RANGE, "four")
    assert "identity.count" in caught.value.hint
    three[1].release(ended=True)
    assert Claim(RANGE, "four").identity == three[1].identity


@pytest.mark.parametrize(("in_use", "left"), [(True, ["one"]), (False, [])])
def test_an_unclean_end_keeps_the_name_while_anybody_runs_as_it(
    claims: Path, monkeypatch: pytest.MonkeyPatch, in_use: bool, left: list[str]
) -> None:
    monkeypatch.setattr(identity, "uid_in_use", lambda uid: in_use)
    claim = Claim(RANGE, "one")
    claim.release(ended=False)
    assert [path.read_text() for path in claims.iterdir()] == left


def test_one_that_was_not_given_back_is_taken_over_only_when_nobody_runs_as_it(
    claims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = IdentitySettings(first_uid=1_879_900_000, count=1)
    claims.mkdir()
    (claims / "1879900000").write_text("dead")
    monkeypatch.setattr(identity, "uid_in_use", lambda uid: True)
    with pytest.raises(SandboxError):
        Claim(single, "next")
    monkeypatch.setattr(identity, "uid_in_use", lambda uid: False)
    claim = Claim(single, "next")
    assert (claims / str(claim.identity.uid)).read_text() == "next"


def test_a_dead_supervisors_claim_is_given_back_for_it_and_a_living_ones_is_not(
    claims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "uid_in_use", lambda uid: False)
    living = Claim(RANGE, "living")
    dead = next(uid for uid in range(RANGE.first_uid, RANGE.first_uid + RANGE.count) if uid != living.identity.uid)
    (claims / str(dead)).write_text("dead")
    assert identity.claims() == {living.identity.uid: "living", dead: "dead"}
    assert identity.abandoned_claims() == {dead: "dead"}
    assert not identity.release_claim(living.identity.uid)
    monkeypatch.setattr(identity, "uid_in_use", lambda uid: True)
    assert not identity.release_claim(dead)
    monkeypatch.setattr(identity, "uid_in_use", lambda uid: False)
    assert identity.release_claim(dead) and not identity.release_claim(dead)
    assert identity.claims() == {living.identity.uid: "living"}


def test_one_that_was_given_back_while_another_looked_is_not_taken_for_a_claim(
    claims: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has opened the file; then its holder removes it and ends. Its lock would be one on nothing."""
    first = Claim(RANGE, "one")
    real_flock = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        if first is not None and (claims / str(first.identity.uid)).exists():
            first.release(ended=True)
        real_flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = Claim(RANGE, "one")
    assert second.identity.uid != first.identity.uid
    assert identity.claims() == {second.identity.uid: "one"}


def test_a_link_in_place_of_a_claim_is_not_written_through(claims: Path, tmp_path: Path) -> None:
    claims.mkdir()
    (tmp_path / "secret").write_text("keep")
    for number in range(RANGE.count):
        os.symlink(tmp_path / "secret", claims / str(RANGE.first_uid + number))
    with pytest.raises(OSError):
        Claim(RANGE, "x")
    assert (tmp_path / "secret").read_text() == "keep"


def test_an_ordinary_user_is_itself_in_a_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1001)
    monkeypatch.setattr(identity, "CLAIMS", tmp_path / "uids")
    claim = Claim(RANGE, "x")
    assert claim.identity == Identity(mode="user_namespace", uid=1000, gid=1001)
    claim.hand_over("y")
    claim.release(ended=False)
    assert not (tmp_path / "uids").exists()


def test_who_runs_as_a_uid() -> None:
    assert uid_in_use(os.getuid())
    assert not uid_in_use(1_879_987_654)


class TestSupervisor:
    def me(self, **changes: object) -> ProcessIdentity:
        facts = {"pid": os.getpid(), "start_time": linux.start_time(os.getpid()), "boot_id": linux.boot_id(), **changes}
        return ProcessIdentity(**facts)  # type: ignore[arg-type]

    def test_this_process_is_alive(self) -> None:
        assert self.me().is_alive and not self.me().wait(0.01)

    @pytest.mark.parametrize("changes", [{"start_time": 1}, {"boot_id": "another"}, {"pid": 2**22 + 1}])
    def test_another_process_with_its_pid_is_not_it(self, changes: dict) -> None:
        other = self.me(**changes)
        assert not other.is_alive
        assert other.wait(10)

    def test_a_signal_is_for_that_very_process_alone(self) -> None:
        if (pid := os.fork()) == 0:
            os.execv("/bin/sleep", ["sleep", "60"])
        real = ProcessIdentity(pid=pid, start_time=linux.start_time(pid) or 0, boot_id=linux.boot_id())
        ProcessIdentity(pid=pid, start_time=real.start_time + 1, boot_id=real.boot_id).send(9)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        real.send(9)
        assert os.waitpid(pid, 0)[1] == 9
        real.send(9)
        assert real.wait(10)

    def test_a_zombie_is_not_alive(self) -> None:
        if (pid := os.fork()) == 0:
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert linux.start_time(pid) is None
        os.waitpid(pid, 0)

    def test_none_was_ever_there(self, tmp_path: Path) -> None:
        assert read_supervisor(ExecutionFolder(tmp_path, "20260102T030405678-9f86d081")) is None

    def test_a_process_whose_name_is_hostile(self, tmp_path: Path) -> None:
        """The name is in the middle of /proc/PID/stat, in brackets, and may hold brackets and spaces."""
        program = tmp_path / "a) R 1 1 ("
        program.symlink_to("/bin/sleep")
        if (pid := os.fork()) == 0:
            os.execv(program, ["x", "60"])
        try:
            while b"a) R 1" not in Path(f"/proc/{pid}/stat").read_bytes():
                pass
            assert (linux.start_time(pid) or 0) >= (linux.start_time(os.getpid()) or 0)
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
