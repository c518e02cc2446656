"""Reads Forge's own: the store, the settings, Dagster's storage, and everything of an execution that has ended."""

from evidence import TARGETS, attempt, done, read

home, victim = TARGETS["home"], TARGETS["victim"]
for name in (
    "",
    "store.db",
    "store.db-wal",
    "settings.toml",
    "executions",
    "runtimes",
    "scratch",
    "scratch/templates",
    "dagster",
    "cache",
):
    attempt(f"home {name}", read, f"{home}/{name}")
for name in ("", "record.json", "plan.json", "supervisor.json", "stdout.log", "messages.jsonl", "outputs", "outputs/result.txt"):
    attempt(f"ended execution {name}", read, f"{victim}/{name}")
done()
