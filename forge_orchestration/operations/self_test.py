"""A runtime's own self-test, and a look at its libraries, where an analysis would run: inside the sandbox."""

from __future__ import annotations

from pathlib import Path

from forge_orchestration.engine import Engine
from forge_orchestration.errors import RuntimeCatalogError
from forge_orchestration.executions.logs import tail
from forge_orchestration.model.limits import updated_limits
from forge_orchestration.model.record import ExecutionRecord
from forge_orchestration.model.spec import AnalysisSpec
from forge_orchestration.runtimes.catalog import ResolvedRuntime, RuntimeDefinition
from forge_orchestration.runtimes.venv import SelfTest
from forge_orchestration.sandbox.view import ANALYSIS

# libraries that the loader does not find, a line each; some wheels hold such that are loaded another way, so it is compared
# with what it said when the runtime was built
_LIBRARIES = (
    "command -v find xargs ldd >/dev/null || exit 3; "
    "find /forge/runtime -type f -name '*.so*' -print0 | xargs -0 -r -n 50 ldd 2>/dev/null"
    " | sed -n 's/^[[:space:]]*\\([^ ]*\\) => not found.*/\\1/p' | sort -u"
)
_MOST_LIBRARY_BYTES = 1 << 20


def sandboxed_self_test(engine: Engine) -> SelfTest:
    """What `runtimes.venv.build` calls before it moves a build into place."""

    def test(definition: RuntimeDefinition, runtime: ResolvedRuntime) -> None:
        record = run_self_test(engine, definition, runtime)
        if not record.succeeded:
            said = tail(Path(record.folder, "stderr.log"), 1000).decode(errors="replace").strip()
            raise RuntimeCatalogError(
                f"Runtime '{definition.name}' failed its self-test: {record.message} {said}",
                f"Its record: {record.folder}/record.json",
            )
        missing = missing_libraries(engine, runtime)
        (runtime.prefix.parent / "missing-libraries").write_text("".join(f"{one}\n" for one in sorted(missing)), "utf-8")

    return test


def run_self_test(engine: Engine, definition: RuntimeDefinition, runtime: ResolvedRuntime) -> ExecutionRecord:
    """Run it once; a definition without one only has to start its interpreter."""
    command = definition.self_test or ("python", "-c", "pass")
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
    """Names of libraries that the loader does not find for a library of the runtime; it is asked inside the sandbox."""
    spec = AnalysisSpec(
        name="verify", command=("sh", "-c", _LIBRARIES), runtime=runtime.runtime.name, limits=engine.settings.defaults,
        chosen_by={"runtime": "verification"},
    )  # fmt: skip
    record = engine.run(spec, runtime=runtime)
    if not record.succeeded:
        raise RuntimeCatalogError(f"The libraries of '{runtime.runtime.name}' cannot be looked at: {record.message}")
    return set(tail(Path(record.folder, "stdout.log"), _MOST_LIBRARY_BYTES).decode(errors="replace").split())
