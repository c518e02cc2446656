"""Where Dagster looks: `dagster job execute -m forge_orchestration.definitions -j pbmc_clusters`."""

from forge_orchestration.orchestration.definitions import defs

__all__ = ["defs"]
