"""The `docker` executor: containers of an engine on this host, each under a supervisor of Forge's."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import shutil
import tarfile
import time
from typing import Any

from forge_orchestration.errors import BackendUnavailableError, ForgeError, HostError
from forge_orchestration.executions.folder import ExecutionFolder
from forge_orchestration.executors.base import ExecutorCapabilities, PreparedExecution
from forge_orchestration.executors.local import LocalExecutor
from forge_orchestration.executors.planned import bind
from forge_orchestration.executors.supervised import SupervisedExecutor
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.sandbox import view
from forge_orchestration.sandbox.cgroups.find import CgroupSite
from forge_orchestration.sandbox.plan import ContainerPlan, LaunchPlan
from forge_orchestration.settings import Settings

_BASE = "forge-base"
_BELIEVED_S = 30.0


class DockerExecutor(SupervisedExecutor):
    """Containers of the engine at `docker_host`, which has to be on this host, as Forge's groups and workspaces are.

    A runtime of kind `image` is the container's file system. Any other is mounted into an empty image, with the system files that
    the local executor shows, so that the same programs run.
    """

    name = "docker"
    contained = True
    capabilities = ExecutorCapabilities(
        limits=LocalExecutor.capabilities.limits,
        runtime_kinds=frozenset({"venv", "conda", "system", "image"}),
        reattach=True,
        where="in containers of an engine on this host",
        enforced_by=LocalExecutor.capabilities.enforced_by,
        cannot=(
            "no network",
            "refused system calls are not counted: the filter is the engine's",
            "a program that exits with 128 and a signal's number is taken for one that this signal ended",
            "no engine on another host",
        ),
    )

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._checked_at = -_BELIEVED_S

    def check(self) -> None:
        if os.geteuid() != 0:
            raise HostError(
                "The executor 'docker' needs root: whoever may talk to the engine is root on this host anyway.",
                "Run Forge as root, or use executor 'local'.",
            )
        if not self._settings.docker_host.startswith("unix://"):
            raise HostError(
                f"The executor 'docker' needs an engine on this host, and docker_host is {self._settings.docker_host}.",
                "Set docker_host in settings.toml to unix://…",
            )
        _init()
        super().check()
        if time.monotonic() - self._checked_at < _BELIEVED_S:
            return
        facts = self._asked(lambda client: client.info())
        if facts.get("CgroupDriver") != "cgroupfs":
            raise HostError(
                f"The container engine leaves its groups to {facts.get('CgroupDriver')}, and so cannot put a container into Forge's.",
                'Set "exec-opts": ["native.cgroupdriver=cgroupfs"] in its daemon.json.',
            )
        if not any("seccomp" in one for one in facts.get("SecurityOptions") or []):
            raise HostError("The container engine filters no system calls.", "Use one that was built with seccomp.")
        self._asked(self._remove_ended)
        self._checked_at = time.monotonic()

    def _remove_ended(self, client: Any) -> None:
        """Containers of executions that have ended, which an engine that was away could not remove."""
        from forge_orchestration.sandbox import container

        for one in client.containers(all=True, filters={"label": container.LABEL}):
            execution_id = one["Labels"][container.LABEL]
            with contextlib.suppress(ForgeError):  # another deployment's, or one that cannot be read
                folder = ExecutionFolder(self._settings.executions_dir, execution_id)
                if folder.read_record().status.is_final and folder.read_record().cleanup.finished_at is not None:
                    container.remove_by_name(self._settings.docker_host, execution_id)

    def plan(self, spec: AnalysisSpec, execution: PreparedExecution, site: CgroupSite) -> LaunchPlan:
        runtime = execution.runtime.runtime
        init = bind(_init(), view.INIT)
        if runtime.kind == "image":
            return self._common_plan(spec, execution, site, binds=[init], container=self._container(runtime.packages["image"]))
        folders, links = view.system_view()
        binds = [init, *(bind(path, path) for path in folders)]
        return self._common_plan(
            spec, execution, site, binds=binds, container=self._container(self._base(tuple(sorted(links.items()))))
        )

    def _container(self, image: str) -> ContainerPlan:
        return ContainerPlan(engine=self._settings.docker_host, image=image)

    def _base(self, links: tuple[tuple[str, str], ...]) -> str:
        """Id of the image that holds nothing but the links of the system view; made if the engine has none."""
        import docker.errors

        archive = _empty_system(links)
        tag = hashlib.sha256(archive).hexdigest()[:16]

        def find(client: Any) -> str:
            try:
                return str(client.inspect_image(f"{_BASE}:{tag}")["Id"])
            except docker.errors.ImageNotFound:
                client.import_image_from_data(archive, repository=_BASE, tag=tag)
                return str(client.inspect_image(f"{_BASE}:{tag}")["Id"])

        return str(self._asked(find))

    def _asked(self, ask: Any) -> Any:
        """What the engine answers.

        Raises:
            BackendUnavailableError: It does not.
        """
        from forge_orchestration.sandbox import container

        engine = self._settings.docker_host
        try:
            client = container.connect(engine)
            try:
                return ask(client)
            finally:
                client.close()
        except container.TROUBLES as error:
            raise BackendUnavailableError(
                f"No container engine answers at {engine}: {container.said(error)}.",
                "Start it, or set docker_host in settings.toml.",
            ) from error


@functools.cache
def _init() -> str:
    """The engine's own first process of a container, which needs no libraries: it passes signals on and reaps.

    Raises:
        HostError: It is not installed.
    """
    path = shutil.which("docker-init", path=f"{os.environ.get('PATH', os.defpath)}:/usr/libexec/docker:/usr/lib/docker")
    if path is None:
        raise HostError("docker-init is not installed.", "Install it with the engine: sudo apt-get install docker.io tini")
    return os.path.realpath(path)


@functools.cache
def _empty_system(links: tuple[tuple[str, str], ...]) -> bytes:
    """A tar of the links alone, the same bytes each time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, target in links:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
            tar.addfile(entry)
        etc = tarfile.TarInfo("etc")
        etc.type, etc.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(etc)
    return buffer.getvalue()
