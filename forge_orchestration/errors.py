"""The errors Forge raises, each with the exit status of the `forge` command.

    ForgeError
    ├── SpecError             2   the request is wrong: nothing was started, nothing is left
    ├── HostError             3   this host cannot give what is asked (no bubblewrap, no cgroup …)
    ├── RuntimeCatalogError   4   a runtime is unknown, not built, or not healthy
    ├── ExecutorError         5   the backend failed
    │   ├── SubmitError
    │   └── BackendUnavailableError
    ├── SandboxError          6   the sandbox could not be set up
    │   └── StuckError        6   what was killed does not end
    ├── CanceledError        15   somebody did not want to wait any longer, before anything had begun
    ├── StoreError            7   the execution store cannot be read or written
    └── InternalError        70   a bug of ours

An analysis that fails is no exception: it is an `ExecutionRecord` with an end reason.
"""

from __future__ import annotations

from typing import ClassVar


class ForgeError(Exception):
    """What went wrong, where, and what to do about it.

    Args:
        message: One sentence: what happened, and where.
        hint: What the reader can do; empty when there is nothing to add.
    """

    exit_code: ClassVar[int] = 70
    transient: ClassVar[bool] = False

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


def one_line(text: str) -> str:
    """`text` without line ends and control characters: what it quotes may come from anywhere."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class SpecError(ForgeError):
    """The request cannot be carried out as it stands."""

    exit_code = 2


class HostError(ForgeError):
    """This host lacks something that the policy demands."""

    exit_code = 3


class RuntimeCatalogError(ForgeError):
    """A runtime is unknown, cannot be built, or is not what it was when it was sealed."""

    exit_code = 4


class ExecutorError(ForgeError):
    """An executor's backend failed."""

    exit_code = 5


class SubmitError(ExecutorError):
    """A submission did not reach the backend; it may be tried again."""

    transient = True


class BackendUnavailableError(ExecutorError):
    """The backend does not answer at the moment."""

    transient = True


class SandboxError(ForgeError):
    """A protection could not be set up, so nothing was started."""

    exit_code = 6


class StuckError(SandboxError):
    """Processes do not end although they were killed: they hang in the kernel."""


class CanceledError(ForgeError):
    """It was canceled before anything had begun."""

    exit_code = 15


class StoreError(ForgeError):
    """The execution store cannot be read or written."""

    exit_code = 7


class InternalError(ForgeError):
    """A bug in Forge."""

    exit_code = 70
