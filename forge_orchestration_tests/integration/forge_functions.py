"""Assets and ops whose bodies run in a sandbox: what a user's module looks like, for `test_functions.py`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from forge_orchestration import forge_asset, forge_op
from forge_orchestration.orchestration.sandboxed_executor import sandboxed_executor

if TYPE_CHECKING:
    import pandas as pd

WORDS = ("a", "b", "c")


class Setting(dg.Config):
    """A module has such things too, and they must not be in the way."""

    value: int = 3


@dg.asset
def plain() -> int:
    """Runs nowhere but in a test that shows that it is refused."""
    return len(os.environ["DAGSTER_HOME"])


def helper(count: int) -> list[str]:
    return [word * count for word in WORDS]


@forge_asset
def words(*, count: int = 2, style: Literal["plain", "loud"] = "plain") -> list[str]:
    """Words, so many times."""
    found = helper(count)
    print("words are made of", found)
    return [word.upper() for word in found] if style == "loud" else found


@forge_asset(group="texts", limits={"memory": "128MiB"}, seed=7)
def joined(words: list[str], *, by: str = "-") -> str:
    """All words as one."""
    return by.join(words)


@forge_asset(ins={"text": "joined"})
def written(text: str) -> Path:
    """As a file, whose ending is kept."""
    path = Path("note.txt")
    path.write_text(text)
    return path


@forge_asset(ins={"note": "written/result"})
def seen(note: Path) -> dict[str, Any]:
    """What a sandbox sees."""
    return {
        "text": note.read_text(),
        "modules": sorted(name for name in sys.modules if name.split(".")[0] in ("dagster", "forge_orchestration")),
        "dagster": type(dg).__name__,
        "environment": sorted(os.environ),
        "seed": os.environ["FORGE_SEED"],
    }


@forge_asset(checks={"few": "At most three words"})
def checked(words: list[str]) -> int:
    """Reports on them."""
    with open(os.environ["FORGE_MESSAGES"], "a") as channel:
        channel.write(
            json.dumps({"type": "check", "name": "few", "passed": len(words) <= 3, "values": {"words": len(words)}}) + "\n"
        )
    return len(words)


@forge_asset
def failing() -> None:
    """Ends with an exception."""
    raise ValueError("this is the reason")


@forge_asset
def unstorable() -> object:
    """Returns what no file can hold."""
    return object()


@forge_asset(runtime="forge-ml")
def table(*, rows: int = 3) -> pd.DataFrame:
    """A frame."""
    import pandas as pd

    return pd.DataFrame({"x": range(rows), "kind": pd.Categorical(["a"] * rows)})


@forge_asset(runtime="forge-ml")
def total(table: pd.DataFrame) -> dict[str, Any]:
    """Of a frame that comes from another asset."""
    return {"sum": int(table["x"].sum()), "kind": str(table["kind"].dtype)}


@forge_op
def number(*, value: int = 20) -> int:
    """A number."""
    return value


@forge_op(name="twice")
def doubled(number: int) -> int:
    """Twice as much."""
    return 2 * number


@forge_op
def added(first: int, second: int) -> int:
    """A sum."""
    return first + second


@dg.job(executor_def=sandboxed_executor)
def arithmetic() -> None:
    """20, doubled, and 20 again: 60."""
    one = number()
    added(doubled(one), one)


defs = dg.Definitions(
    assets=[words, joined, written, seen, checked, failing, unstorable, table, total],
    jobs=[
        arithmetic,
        dg.define_asset_job("texts", selection=["words", "joined", "written", "seen", "checked"]),
        dg.define_asset_job("tables", selection=["table", "total"]),
        dg.define_asset_job("only_joined", selection=["joined"]),
        *(dg.define_asset_job(f"only_{name}", selection=[name]) for name in ("failing", "unstorable")),
    ],
    executor=sandboxed_executor,
)
