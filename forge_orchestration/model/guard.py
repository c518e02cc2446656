"""What is known of the databases and files that a deployment guards, before and after one execution."""

from __future__ import annotations

from typing import Literal

import msgspec

FileKind = Literal["file", "folder", "link", "other", "missing", "unreadable"]
Verdict = Literal["corrupted", "changed", "suspect", "before"]


class FileState(msgspec.Struct, frozen=True, kw_only=True):
    """One file as a look found it.

    Attributes:
        kind: `file`, `folder`, `link`, `other` (a device, a socket …), `missing`, or `unreadable`.
        mtime: Seconds since the epoch.
        sha256: Of a file's content.
        link_target: Of a link, which is not followed.
    """

    kind: FileKind
    bytes: int | None = None
    mtime: float | None = None
    sha256: str | None = None
    link_target: str | None = None

    def same_content(self, other: FileState) -> bool:
        """Whether both hold the same; times and owners do not count."""
        return (self.kind, self.sha256, self.link_target) == (other.kind, other.sha256, other.link_target)


class GuardFinding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it should be, or could not be looked at.

    Attributes:
        target: Name of the database, or the file's path.
        what: What was found, and who else may have done it.
        verdict: `corrupted`: a database was whole before, is not now, and no other execution ran meanwhile. `changed`: likewise, a
            file holds something else. `suspect`: other executions ran meanwhile, or it could not be looked at afterwards.
            `before`: it was so before this execution began.
        before, after: Of a file.
        others: Ids of the deployment's executions that ran between the two looks as well.
    """

    target: str
    what: str
    verdict: Verdict
    before: FileState | None = None
    after: FileState | None = None
    others: list[str] = []


class GuardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, when, and what was found.

    Attributes:
        databases: Their names in the settings.
        tier: How thoroughly databases were read.
        files, bytes: Beneath all `paths`, at the first look.
        before_at, before_s: When the first look began, and how long it took.
        after_at, after_s: The second; None if nothing of the execution ran, or if nobody looked.
        why_not_after: Why nobody looked; empty otherwise.
    """

    databases: list[str] = []
    tier: Literal["quick", "full"] = "quick"
    paths: list[str] = []
    files: int = 0
    bytes: int = 0
    before_at: float = 0.0
    before_s: float = 0.0
    after_at: float | None = None
    after_s: float | None = None
    why_not_after: str = ""
    findings: list[GuardFinding] = []

    @property
    def is_suspect(self) -> bool:
        """Whether a finding says so."""
        return any(finding.verdict == "suspect" for finding in self.findings)

    def not_looked_after(self, why: str) -> GuardFacts:
        """The same where the execution ran and nobody took the second look."""
        what = f"not looked at afterwards: {why}"
        lost = [GuardFinding(target=target, what=what, verdict="suspect") for target in (*self.databases, *self.paths)]
        return msgspec.structs.replace(self, why_not_after=why, findings=[*self.findings, *lost])
