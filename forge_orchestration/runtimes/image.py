"""The kind `image`: an image of an OCI registry, or one that the container engine has already, by its digest.

A digest names the content of an image, so there are no files to seal: what is verified is that the engine has that very image. Executors
that run containers use it; the local one does not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.model.limits import Limits
from forge_orchestration.runtimes.catalog import Runtime, RuntimeDefinition
from forge_orchestration.runtimes.installed import Installed
from forge_orchestration.settings import Settings

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

_REFERENCE = re.compile(r"([a-zA-Z0-9][a-zA-Z0-9._/:-]*@)?sha256:[0-9a-f]{64}")
_TIMEOUT_S = 30
_PULL_TIMEOUT_S = 3600


def check_reference(reference: str, where: str) -> None:
    """Refuse an image that is not named by a digest: a tag means another image tomorrow.

    Raises:
        RuntimeCatalogError: It is not.
    """
    if not _REFERENCE.fullmatch(reference):
        raise RuntimeCatalogError(
            f"The image '{reference[:200]}' in {where} is not named by its digest.", "Write it as NAME@sha256:… or sha256:…"
        )


def install(definition: RuntimeDefinition, settings: Settings, say: Callable[[str], None]) -> Installed:
    """See that the engine has the image; it is pulled if it has not.

    Raises:
        RuntimeCatalogError: The engine does not answer, or the image cannot be had, or is another one.
    """
    check_reference(definition.image, definition.folder)
    with _engine(settings, _PULL_TIMEOUT_S) as client:
        if _find(client, definition.image) is None:
            if "@" not in definition.image:
                raise RuntimeCatalogError(
                    f"The engine at {settings.docker_host} has no image {definition.image}.",
                    "Load it: docker load, or name it as NAME@sha256:…",
                )
            say(f"{definition.name}: pulling {definition.image}")
            _pull(client, definition.image)
        facts = _find(client, definition.image)
    if facts is None:
        raise RuntimeCatalogError(f"The image {definition.image} was pulled and is not there.")
    variables = dict(one.split("=", 1) for one in facts.get("Config", {}).get("Env") or [] if "=" in one)
    return Installed(
        basis=f"image {facts['Id']}", packages={"image": facts["Id"]}, prefix="/", mount="", listed=[], activation=variables
    )


def findings(runtime: Runtime, settings: Settings) -> list[str]:
    """Whether the engine still has the very image that was there when it was built."""
    wanted = runtime.packages["image"]
    try:
        with _engine(settings, _TIMEOUT_S) as client:
            found = _find(client, wanted)
    except RuntimeCatalogError as error:
        return [error.message.rstrip(".")]
    return [] if found is not None else [f"the image {wanted} is no longer there"]


def run(runtime: Runtime, command: Sequence[str], limits: Limits, settings: Settings) -> None:
    """Run a command in a container of the image: without network, capabilities or a writable root, within its limits.

    The container is gone afterwards, however it ended.

    Raises:
        RuntimeCatalogError: It cannot be run so, fails, or takes too long; the sentence holds the end of what it said.
    """
    import docker.errors
    import requests

    try:
        with _engine(settings, _TIMEOUT_S) as client:
            container = client.containers.create(
                runtime.packages["image"], list(command[1:]), entrypoint=list(command[:1]), network_mode="none", read_only=True, cap_drop=["ALL"],
                security_opt=["no-new-privileges"], mem_limit=limits.memory_bytes, memswap_limit=limits.memory_bytes,
                pids_limit=limits.pids, nano_cpus=int(limits.cpus * 1e9), tmpfs={"/tmp": f"size={limits.scratch_bytes},mode=1777"}, user="65534:65534",
            )  # fmt: skip
            try:
                _check_limits(container, limits)
                container.start()
                status = _wait(container, limits.wall_time_s)
                said = " ".join(container.logs(stdout=False).decode(errors="replace").split())
            finally:
                container.remove(force=True)
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise RuntimeCatalogError(f"No container of it can be run: {_said(error)}.") from error
    if status != 0:
        raise RuntimeCatalogError(f"It exited with status {status}: {said[-600:]}")


def _check_limits(container: Container, limits: Limits) -> None:
    """Refuse to start where the engine has dropped a limit, which it does with a warning that nobody reads.

    Raises:
        RuntimeCatalogError: It has.
    """
    container.reload()
    wanted = {"Memory": limits.memory_bytes, "PidsLimit": limits.pids, "NanoCpus": int(limits.cpus * 1e9)}
    dropped = [name for name, value in wanted.items() if container.attrs["HostConfig"].get(name) != value]
    if dropped:
        raise RuntimeCatalogError(
            f"The container engine does not limit {', '.join(dropped)}, so nothing is run.", "See: docker info"
        )


def _wait(container: Container, timeout_s: float) -> int:
    import requests

    try:
        return int(container.wait(timeout=math.ceil(timeout_s))["StatusCode"])
    except (requests.ReadTimeout, requests.ConnectionError) as error:
        raise RuntimeCatalogError(
            f"It did not end within {timeout_s:g} s.", "Raise wall_time in its limits, or do less."
        ) from error


class _engine:
    """A client of the engine of the settings, for a `with` statement."""

    def __init__(self, settings: Settings, timeout_s: float) -> None:
        self._settings, self._timeout_s = settings, timeout_s

    def __enter__(self) -> docker.DockerClient:
        import docker.errors
        import requests

        try:
            self._client = docker.DockerClient(base_url=self._settings.docker_host, timeout=math.ceil(self._timeout_s))
            self._client.ping()
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise RuntimeCatalogError(
                f"No container engine answers at {self._settings.docker_host}: {_said(error)}.",
                "Start one, or set docker_host in settings.toml.",
            ) from error
        return self._client

    def __exit__(self, *_: object) -> None:
        self._client.close()


def _find(client: docker.DockerClient, reference: str) -> dict[str, Any] | None:
    import docker.errors
    import requests

    try:
        facts: dict[str, Any] = client.images.get(reference).attrs
    except docker.errors.ImageNotFound:
        return None
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise RuntimeCatalogError(f"The image {reference} cannot be looked at: {_said(error)}.") from error
    return facts


def _pull(client: docker.DockerClient, reference: str) -> None:
    import docker.errors
    import requests

    name, _, digest = reference.partition("@")
    try:
        client.images.pull(name, tag=digest)
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise RuntimeCatalogError(f"The image {reference} cannot be pulled: {_said(error)}.") from error


def _said(error: Exception) -> str:
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:400].rstrip(".")
