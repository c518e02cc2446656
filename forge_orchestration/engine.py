"""The one way in which an analysis is run: the CLI, Dagster and `forge_orchestration.run()` all come through here."""

from __future__ import annotations
