"""Checks of the host and the runtimes: what would keep an execution from running, before it is asked to; and the looks around guarded executions."""
