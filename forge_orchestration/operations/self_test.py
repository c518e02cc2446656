"""What runs something of a runtime, where an analysis would run: its self-test, a look at its libraries, its activation."""

from __future__ import annotations

from pathlib import Path

from forge_orchestration.analyses.checks import check_environment
from forge_orchestration.engine import Engine
from forge_orchestration.errors import RuntimeCatalogError, SpecError
from forge_orchestration.executions.logs import tail
from forge_orchestration.model.limits import updated_limits
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.runtimes.catalog import ResolvedRuntime, RuntimeDefinition
from forge_orchestration.sandbox.view import ANALYSIS

# libraries that the loader does not find, a line each; some packages hold such that are loaded another way, so it is compared
# with what it said when the runtime was built
_LIBRARIES = (
    "command -v find xargs ldd >/dev/null || exit 3; "
    "find \"$1\" -type f -name '*.so*' -print0 | xargs -0 -r -n 50 ldd 2>/dev/null"
    " | sed -n 's/^[[:space:]]*\\([^ ]*\\) => not found.*/\\1/p' | sort -u"
)
_MOST_BYTES = 1 << 20
# what a shell changes by itself, and what each sandbox has of its own
_NOT_OF_A_RUNTIME = {"PWD", "OLDPWD", "SHLVL", "_", "HOME", "TMPDIR", "USER", "LOGNAME", "PATH", "PS1", "LANG", "LC_ALL", "TZ"}


class InSandbox:
    """What `runtimes.building.build` has run of a build before it moves it into place."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def test(self, definition: RuntimeDefinition, runtime: ResolvedRuntime) -> set[str]:
        """Run the self-test; returns the names of libraries that the loader does not find.

        Raises:
            RuntimeCatalogError: It fails.
        """
        self.self_test(definition, runtime)
        return missing_libraries(self._engine, runtime)

    def self_test(self, definition: RuntimeDefinition, runtime: ResolvedRuntime) -> None:
        """Run the self-test.

        Raises:
            RuntimeCatalogError: It fails.
        """
        if runtime.runtime.kind == "image":
            self._test_image(definition, runtime)
            return
        record = run_self_test(self._engine, definition, runtime)
        if not record.succeeded:
            said = tail(Path(record.folder, "stderr.log"), 1000).decode(errors="replace").strip()
            raise RuntimeCatalogError(
                f"Runtime '{definition.name}' failed its self-test: {record.message} {said}",
                f"Its record: {record.folder}/record.json",
            )

    def _test_image(self, definition: RuntimeDefinition, runtime: ResolvedRuntime) -> None:
        from forge_orchestration.runtimes import image

        limits = updated_limits(self._engine.settings.defaults, definition.limits, f"runtime '{definition.name}'")
        try:
            image.run(runtime.runtime, definition.self_test or ("true",), limits, self._engine.settings)
        except RuntimeCatalogError as error:
            raise RuntimeCatalogError(f"Runtime '{definition.name}' failed its self-test: {error.message}", error.hint) from error

    def activation(self, runtime: ResolvedRuntime, script: str) -> dict[str, str]:
        """The variables that a shell has after `script` and did not have before, or had otherwise.

        Raises:
            RuntimeCatalogError: The script fails, or sets what cannot be a variable.
        """
        command = 'env -0 > "$FORGE_OUTPUTS/before" && eval "$1" && env -0 > "$FORGE_OUTPUTS/after"'
        spec = AnalysisSpec(
            name="activation", command=("bash", "-c", command, "activation", script), runtime=runtime.runtime.name,
            outputs={"before": "before", "after": "after"}, limits=self._engine.settings.defaults, chosen_by={"runtime": "build"},
        )  # fmt: skip
        record = self._engine.run(spec, runtime=runtime)
        if not record.succeeded:
            said = tail(Path(record.folder, "stderr.log"), 1000).decode(errors="replace").strip()
            raise RuntimeCatalogError(f"Runtime '{runtime.runtime.name}' cannot be activated: {record.message} {said}")
        before, after = (_variables(Path(record.folder, "outputs", name)) for name in ("before", "after"))
        found = {
            name: value
            for name, value in after.items()
            if before.get(name) != value and name not in _NOT_OF_A_RUNTIME and not name.startswith(("FORGE_", "BASH_FUNC_"))
        }
        try:
            check_environment(found, f"the activation of runtime '{runtime.runtime.name}'")
        except SpecError as error:
            raise RuntimeCatalogError(error.message, error.hint) from error
        return found | {"PATH": _own_path(before, after)}


def _variables(path: Path) -> dict[str, str]:
    """What `env -0` has written, which is untrusted: of a bounded size, and text."""
    with open(path, "rb") as file:
        data = file.read(_MOST_BYTES)
    pairs = (item.decode("utf-8", "replace").partition("=") for item in data.split(b"\0") if item)
    return {name: value for name, _, value in pairs}


def _own_path(before: dict[str, str], after: dict[str, str]) -> str:
    """The folders that the activation put before those that were there, each once."""
    there = before.get("PATH", "").split(":")
    own = there[: there.index("/usr/local/bin")] if "/usr/local/bin" in there else []
    added = [folder for folder in after.get("PATH", "").split(":") if folder and folder not in there]
    return ":".join(dict.fromkeys([*added, *own]))


def run_self_test(engine: Engine, definition: RuntimeDefinition, runtime: ResolvedRuntime) -> ExecutionRecord:
    """Run it once; a definition without one only has to start its interpreter."""
    command = definition.self_test or (("python", "-c", "pass") if runtime.runtime.python else ("true",))
    folder = Path(definition.folder)
    spec = AnalysisSpec(
        name="self_test",
        command=tuple(f"{ANALYSIS}/{word}" if (folder / word).is_file() else word for word in command),
        folder=definition.folder,
        runtime=definition.name,
        limits=updated_limits(engine.settings.defaults, definition.limits, f"runtime '{definition.name}'"),
        chosen_by={"runtime": "self-test"},
    )
    return engine.run(spec, runtime=runtime)


def missing_libraries(engine: Engine, runtime: ResolvedRuntime) -> set[str]:
    """Names of libraries that the loader does not find for a library of the runtime; it is asked inside the sandbox.

    Those of the host's own packages are not looked at: dpkg keeps their dependencies.
    """
    if not runtime.runtime.mount:
        return set()
    spec = AnalysisSpec(
        name="verify", command=("sh", "-c", _LIBRARIES, "verify", runtime.runtime.mount), runtime=runtime.runtime.name,
        limits=engine.settings.defaults, chosen_by={"runtime": "verification"},
    )  # fmt: skip
    record = engine.run(spec, runtime=runtime)
    if not record.succeeded:
        raise RuntimeCatalogError(f"The libraries of '{runtime.runtime.name}' cannot be looked at: {record.message}")
    return set(tail(Path(record.folder, "stdout.log"), _MOST_BYTES).decode(errors="replace").split())
