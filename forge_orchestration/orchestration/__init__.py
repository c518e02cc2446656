"""The Dagster edge: analyses as assets, their executions as materializations, health as asset checks.

The only layer that imports Dagster. It decides nothing about how an analysis runs: it turns op config into a spec,
hands that to the engine, and shows what comes back.
"""
