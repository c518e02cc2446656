"""Ids set aside for a user: found in the files, and translated between a namespace that has them and the host."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from forge_orchestration.errors import HostError, SandboxError
from forge_orchestration.model.sections import IdentitySettings
from forge_orchestration.sandbox import identity, linux, subordinate
from forge_orchestration.sandbox.identity import Claim
from forge_orchestration.sandbox.subordinate import Range
from forge_orchestration_tests.conftest import prerequisite


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("other:100000:65536\n", None),
        ("me:100000:65536\n", Range(100000, 65536)),
        ("me:100000:10\nother:5:5\nme:300000:70000\n", Range(300000, 70000)),
        (f"{os.geteuid()}:200000:1000\n", Range(200000, 1000)),
        ("me:100000\nme:x:y\nme\n:::\nme:1:2:3\n", None),
    ],
)
def test_what_a_file_sets_aside(tmp_path: Path, text: str, found: Range | None) -> None:
    path = tmp_path / "subuid"
    path.write_text(text)
    assert subordinate._set_aside(path, "me") == found


def test_no_file_sets_nothing_aside(tmp_path: Path) -> None:
    assert subordinate._set_aside(tmp_path / "no file", "me") is None


@pytest.mark.parametrize("what", ["no user", "no ids", "no tool"])
def test_what_is_missing_is_said_and_nothing_is_entered(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "no user":
        monkeypatch.setattr(os, "geteuid", lambda: 3_000_000)
        expected = "no line in /etc/passwd"
    elif what == "no ids":
        monkeypatch.setattr(subordinate, "_set_aside", lambda path, name: Range(1, 5))
        expected = "no ids are set aside"
    else:
        monkeypatch.setattr(subordinate, "_set_aside", lambda path, name: Range(100000, 65536))
        monkeypatch.setattr(subordinate, "_TOOL_PATH", "/nonexistent")
        expected = "newuidmap is not installed"
    assert expected in subordinate.missing()
    with pytest.raises(HostError, match=expected):
        subordinate.enter()
    assert not subordinate.is_entered()


def _inside(look: Callable[[], object]) -> object:
    """What `look` returns in a user namespace in which 0 is this user, and 1 to 999 are 500001 to 500999 of the host."""
    told, tell = os.pipe()
    ready, begin = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(tell, b".")
            os.read(ready, 1)
            os.write(tell, json.dumps(look()).encode())
        except BaseException as error:
            os.write(tell, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.read(told, 1)
    for kind in ("uid", "gid"):
        Path(f"/proc/{pid}/{kind}_map").write_text(f"0 {os.geteuid()} 1\n1 500001 999\n")
    os.write(begin, b".")
    os.waitpid(pid, 0)
    said = json.loads(os.read(told, 1 << 16))
    for fd in (told, tell, ready, begin):
        os.close(fd)
    return said


def test_names_of_ids_inside_and_outside() -> None:
    prerequisite(os.geteuid() == 0, "only root may map other ids without a tool")
    assert not subordinate.is_entered() and subordinate.outside(12) == subordinate.seen_here(12) == 12

    def look() -> object:
        outside = [subordinate.outside(uid) for uid in (0, 1, 999, 5000)]
        here = [subordinate.seen_here(uid) for uid in (0, 500001, 500999, 501000, 1)]
        own = subordinate.own_range()
        return [subordinate.is_entered(), outside, here, [own.first, own.count]]

    assert _inside(look) == [True, [0, 500001, 500999, 5000], [0, 1, 999, -1, -1], [500001, 999]]


def test_a_claim_inside_is_known_by_the_hosts_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prerequisite(os.geteuid() == 0, "only root may map other ids without a tool")
    monkeypatch.setattr(identity, "CLAIMS", tmp_path / "uids")

    def look() -> object:
        claim = Claim(IdentitySettings(), "one")
        mine = claim.identity
        assert mine.mode == "subordinate_uid" and mine.is_own and 1 <= mine.uid <= 999
        assert mine.host_uid == mine.uid + 500000
        assert identity.claims() == {mine.host_uid: "one"}
        claim.release(ended=False)
        return [identity.claims(), os.listdir(tmp_path / "uids")]

    assert _inside(look) == [{}, []]


def test_when_all_are_taken_the_sentence_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "CLAIMS", tmp_path / "uids")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(subordinate, "is_entered", lambda: True)
    monkeypatch.setattr(subordinate, "own_range", lambda: Range(700000, 1))
    monkeypatch.setattr(subordinate, "outside", lambda uid: uid and uid + 699999)
    held = Claim(IdentitySettings(), "one")
    with pytest.raises(SandboxError, match="All uids from 700000 to 700000") as caught:
        Claim(IdentitySettings(), "two")
    assert "/etc/subuid" in caught.value.hint
    held.release(ended=True)


def test_claims_of_a_user_lie_beneath_the_home_folder_of_the_host_users_file(monkeypatch: pytest.MonkeyPatch) -> None:
    somebody = next(user for user in pwd.getpwall() if user.pw_uid)
    monkeypatch.setattr(os, "geteuid", lambda: somebody.pw_uid)
    monkeypatch.setenv("HOME", "/elsewhere")
    assert identity.claims_folder() == Path(somebody.pw_dir, ".local/state/forge/uids")
