"""One container of an execution: what the engine is asked for, what it made of that, and how the command in it ends.

The engine isolates; Forge limits: the container's own group lies in the execution's, which has the limits, is read back, and still
tells what was used when the container's is gone. The engine's limits are a page and a process wider, so that it is always the
execution's own that is hit, and whoever looks at the container sees them.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import docker
import docker.errors
import requests
from docker.types import LogConfig, Mount, Ulimit

from forge_orchestration.errors import SandboxError, StuckError
from forge_orchestration.model.record import Measured
from forge_orchestration.sandbox import bubblewrap, view
from forge_orchestration.sandbox.identity import Identity
from forge_orchestration.sandbox.plan import LaunchPlan

LABEL = "forge.execution_id"
TROUBLES = (docker.errors.DockerException, requests.RequestException, OSError)
_API_TIMEOUT_S = 60
_PROBE_TIMEOUT_S = 2
_AWAY_S = 60.0  # for so long an engine may be restarted
_END_TIMEOUT_S = 20.0
_IN_PROGRESS = 409  # somebody else is removing it
_LAST_MOMENT_S = 1.0
_LARGEST_FRAME_BYTES = 1 << 20
# what engines mask where nobody says otherwise
_MASKED = (
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
    "/proc/scsi", "/sys/firmware",
)  # fmt: skip
_MUST_HOLD = (
    "ReadonlyRootfs", "NetworkMode", "IpcMode", "CgroupnsMode", "CgroupParent", "CapDrop", "SecurityOpt", "Ulimits", "PidsLimit", "Memory",
    "CpuQuota", "MaskedPaths",
)  # fmt: skip
_FRAME = struct.Struct(">BxxxL")
_STREAMS = {1: "stdout", 2: "stderr"}
_PAGE_BYTES = 1 << 16
_SIGNALLED = range(129, 193)


def connect(engine: str, timeout_s: int = _API_TIMEOUT_S) -> Any:
    """A client of the engine at this address, which is asked for nothing yet but which version it speaks.

    Raises:
        docker.errors.DockerException, requests.RequestException: It does not answer.
    """
    return docker.APIClient(base_url=engine, timeout=timeout_s)


def name_of(execution_id: str) -> str:
    """What the container of an execution is called: there is never a second one."""
    return f"forge-{execution_id}"


def request(
    plan: LaunchPlan,
    identity: Identity,
    group: str,
    mounts: list[tuple[str, str, bool]],
    image: Mapping[str, Any],
    api_version: str,
) -> dict[str, Any]:
    """What the engine is asked for: the body of its call to create a container. No I/O.

    Args:
        group: The execution's, by its name beneath each controller's mount.
        mounts: Host path, path inside, and whether it is read-only.
        image: The engine's description of the image.
    """
    limits, config = plan.limits, image.get("Config") or {}
    binds = [
        Mount(target=target, source=source, type="bind", read_only=closed, propagation="rprivate")
        for source, target, closed in mounts
    ]
    taken = {target for _, target, _ in mounts}
    # a volume that an image declares would be a folder of the host's disk without a limit; nothing of `/sys` is an analysis' business;
    # and terminals come out of one stock for all containers
    covers = [
        Mount(target=path, source="", type="tmpfs", read_only=True, tmpfs_size=4096, tmpfs_mode=0o555)
        for path in ("/sys", "/dev/pts", *(config.get("Volumes") or {}))
        if path.rstrip("/") not in taken
    ]
    host = docker.types.HostConfig(
        version=api_version, mounts=[*binds, *covers], network_mode="none", ipc_mode="private", read_only=True, cgroupns="private",
        cap_drop=["ALL"], security_opt=["no-new-privileges"], restart_policy={"Name": "no"},
        mem_limit=limits.memory_bytes + _PAGE_BYTES, memswap_limit=limits.memory_bytes + _PAGE_BYTES,
        cpu_period=100_000, cpu_quota=max(1000, round(limits.cpus * 100_000)), pids_limit=limits.pids + 2,
        shm_size=limits.memory_bytes, oom_score_adj=plan.neighbours.oom_score_adj, cgroup_parent=f"/{group}",
        ulimits=[
            Ulimit(name="nofile", soft=limits.open_files, hard=limits.open_files), Ulimit(name="core", soft=1, hard=1),
            Ulimit(name="sigpending", soft=1024, hard=1024), Ulimit(name="msgqueue", soft=80 << 10, hard=80 << 10),
        ],
        # what the engine keeps of the logs is for the time after it was restarted, and no more than that
        log_config=LogConfig(type="local", config={"max-size": str(2 * limits.log_bytes), "max-file": "1", "compress": "false"}),
    )  # fmt: skip
    # of an image's own variables, those that are its activation are in the plan: a bare name removes one
    others = {one.partition("=")[0] for one in config.get("Env") or []} - plan.environment.keys()
    host["MaskedPaths"] = [*_MASKED, *bubblewrap.MASKED]
    variables = plan.environment | {"FORGE_DEADLINE": f"{time.time() + limits.wall_time_s:.3f}"}
    return {
        "Image": plan.container.image if plan.container else "", "Hostname": "forge", "User": f"{identity.host_uid}:{identity.host_uid}", "WorkingDir": view.SCRATCH,
        "Entrypoint": [view.INIT, "--"], "Cmd": list(plan.command), "Env": [*(f"{name}={value}" for name, value in variables.items()), *sorted(others)],
        "AttachStdin": False, "AttachStdout": True, "AttachStderr": True, "OpenStdin": False, "Tty": False, "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]}, "Labels": {LABEL: plan.execution_id}, "StopSignal": "SIGTERM", "HostConfig": host,
    }  # fmt: skip


class Container:
    """A container as the supervisor holds it.

    Attributes:
        output: A stream of frames of what it says, non-blocking; it ends with the container, or with the engine.
        ended: Becomes readable when its first process has ended.
        started_at, released_at, exit_status, signal: See `supervisor.Command`.
        was_away: Whether the engine was, at any time.
    """

    def __init__(self, engine: str, execution_id: str, body: dict[str, Any]) -> None:
        self._client, self._probe = connect(engine), connect(engine, _PROBE_TIMEOUT_S)
        self.started_at, self.released_at = time.monotonic(), 0.0
        self.exit_status: int | None = None
        self.signal: int | None = None
        self.ended = -1
        self.was_away = self._away = False
        self.pid = 0
        self._rest = b""
        self._heard = dict.fromkeys(_STREAMS.values(), 0)
        self._began_at = time.time()
        self._asked_for = body["HostConfig"]
        self.id = str(self._client.create_container_from_config(body, name_of(execution_id))["Id"])
        self._output = self._attach()

    @property
    def output(self) -> int:
        return self._output.fileno()

    @property
    def io_read(self) -> Measured | None:
        """Not known: the group counts it where the kernel does."""
        return None

    @property
    def io_write(self) -> Measured | None:
        """Likewise."""
        return None

    def see_as_asked(self) -> None:
        """Compare what the engine has made with what it was asked for: it drops what it does not know, with a warning that nobody reads.

        Raises:
            SandboxError: It is another container than that.
        """
        made = self._client.inspect_container(self.id)["HostConfig"]
        for name in _MUST_HOLD:
            if made.get(name) != self._asked_for[name]:
                raise SandboxError(f"The engine made a container with {name} {made.get(name)}, not {self._asked_for[name]}.")

    def start(self) -> None:
        """Let the command go."""
        self.released_at = time.monotonic()
        self._client.start(self.id)
        self.pid = int(self._client.inspect_container(self.id)["State"]["Pid"])
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                self.ended = os.pidfd_open(self.pid)

    def read(self) -> Iterator[tuple[str, bytes]]:
        """What it has said since, by stream.

        Raises:
            EOFError: Nothing more comes from here.
        """
        try:
            data = self._output.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError
        self._rest += data
        while len(self._rest) >= _FRAME.size:
            number, size = _FRAME.unpack_from(self._rest)
            if number not in _STREAMS or size > _LARGEST_FRAME_BYTES:
                raise EOFError  # no frame: where the stream was taken up again, something is missing
            if len(self._rest) < _FRAME.size + size:
                break
            payload, self._rest = self._rest[_FRAME.size : _FRAME.size + size], self._rest[_FRAME.size + size :]
            self._heard[_STREAMS[number]] += len(payload)
            yield _STREAMS[number], payload

    def has_ended(self) -> bool:
        """Whether its first process has, or is about to: what it had is taken from it a moment before that can be seen."""
        return self.ended < 0 or bool(select.select([self.ended], [], [], _LAST_MOMENT_S)[0])

    def note_end(self, *, killed: bool = False) -> None:
        """Its first process has ended: ask the engine how.

        Args:
            killed: Whether it was killed by us, so that this is known if the engine does not say.

        Raises:
            SandboxError: The engine does not come back, or knows nothing of it any more.
        """
        try:
            self._ask_for_end()
        except SandboxError:
            if not killed:
                raise
            self.signal, self.exit_status = 9, 128 + 9

    def _ask_for_end(self) -> None:
        state = self._asked(lambda: self._client.inspect_container(self.id))["State"]
        deadline = time.monotonic() + _END_TIMEOUT_S
        while state.get("Running") and time.monotonic() < deadline:  # the engine hears of it a moment later
            time.sleep(0.01)
            state = self._asked(lambda: self._client.inspect_container(self.id))["State"]
        if not isinstance(code := state.get("ExitCode"), int):
            raise SandboxError("The container engine does not say how the container has ended.")
        # what an engine says of a signal is what a shell says: 128 and its number
        self.signal = code - 128 if code in _SIGNALLED else None
        self.exit_status = code

    def was_killed_by_engine(self, *, away: bool) -> bool:
        """Whether a signal was sent to it by the engine, for whomever.

        Args:
            away: Whether the engine was away when it ended: then one that ends its containers when it is stopped has done so.
        """
        try:
            if away:
                return not self._client.info().get("LiveRestoreEnabled")
            wanted = {"container": self.id, "event": "kill"}
            return any(self._client.events(since=int(self._began_at), until=int(time.time()) + 1, filters=wanted, decode=True))
        except TROUBLES:
            return True  # it goes away in this very moment

    def missed(self) -> Iterator[tuple[str, bytes]]:
        """What it has said and nobody could hear while the engine was away, from what the engine has kept.

        Raises:
            SandboxError: The engine does not say.
        """
        for number, stream in _STREAMS.items():
            # not as a stream: for that the library takes all time limits away
            data = self._asked(
                lambda n=number: self._client.logs(self.id, stdout=n == 1, stderr=n == 2, stream=False, follow=False)
            )
            if new := data[self._heard[stream] :]:
                self._heard[stream] += len(new)
                yield stream, new

    def is_away(self) -> bool:
        """Whether the engine is away now; whoever calls this has other things to do than to wait for it."""
        try:
            self._probe.ping()
        except TROUBLES:
            self._away = self.was_away = True
            return True
        return False

    def attach_again(self) -> bool:
        """Listen again where nothing more was heard because the engine was away; False if it is still, or never was."""
        if self.is_away() or not self._away:
            return False
        try:
            output = self._attach()
        except TROUBLES:
            return False
        self._output.close()
        self._output, self._rest, self._away = output, b"", False
        return True

    def kill(self) -> None:
        """Nothing: the execution's group is killed by the kernel, and the engine only has to notice."""

    def end(self) -> None:
        """Wait until the first process has ended, however it did."""
        if self.ended >= 0 and not select.select([self.ended], [], [], _END_TIMEOUT_S)[0]:
            raise StuckError(
                f"Process {self.pid} of container {self.id[:12]} does not end.", "Something of it may hang in the kernel."
            )
        if self.exit_status is None and self.released_at:
            with contextlib.suppress(SandboxError):
                self.note_end()

    def remove(self) -> None:
        """Remove it, and close what is open.

        Raises:
            SandboxError: The engine does not.
        """
        with contextlib.suppress(OSError):
            self._output.close()
        if self.ended >= 0:
            os.close(self.ended)
            self.ended = -1
        self._asked(lambda: _remove(self._client, self.id))

    def _attach(self) -> socket.socket:
        stream = self._client.attach_socket(self.id, {"stdout": 1, "stderr": 1, "stream": 1, "logs": 0})
        connection: socket.socket = getattr(stream, "_sock", stream)
        connection.setblocking(False)
        self._stream = stream  # it closes the connection when it is collected
        return connection

    def _asked(self, ask: Any) -> Any:
        """What the engine answers; while it is away, it is waited for."""
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                return ask()
            except docker.errors.NotFound as error:
                raise SandboxError(f"The container {self.id[:12]} was removed by somebody.") from error
            except docker.errors.APIError as error:
                raise SandboxError(f"The container engine refused: {said(error)}.") from error
            except (docker.errors.DockerException, requests.RequestException, OSError) as error:
                self._away = self.was_away = True
                if time.monotonic() > deadline:
                    raise SandboxError(f"The container engine does not answer: {said(error)}.", "Start it again.") from error
                time.sleep(0.25)


def said(error: Exception) -> str:
    """What an engine said, in one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:400].rstrip(".")


def _remove(client: Any, name: str) -> None:
    try:
        client.remove_container(name, v=True, force=True)
    except docker.errors.NotFound:
        pass
    except docker.errors.APIError as error:
        if error.status_code != _IN_PROGRESS:
            raise


def remove_by_name(engine: str, execution_id: str) -> None:
    """Remove the container of an execution whose supervisor is gone, if there is one.

    Raises:
        SandboxError: The engine does not answer, or does not remove it.
    """
    try:
        client = connect(engine)
        try:
            _remove(client, name_of(execution_id))
        finally:
            client.close()
    except TROUBLES as error:
        raise SandboxError(f"The container of {execution_id} cannot be removed: {said(error)}.", "Start the engine.") from error
