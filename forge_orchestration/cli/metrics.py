"""`forge metrics` and `forge dashboard`."""

from __future__ import annotations

import argparse
import sys

from forge_orchestration.errors import SpecError
from forge_orchestration.settings import load_settings


def print_metrics(arguments: argparse.Namespace) -> int:
    """All metrics, in Prometheus' text format."""
    from forge_orchestration.metrics.exposition import exposition

    sys.stdout.buffer.write(exposition(load_settings()))
    return 0


def serve_dashboard(arguments: argparse.Namespace) -> int:
    """Serve the Quest view, its JSON and the metrics until SIGTERM or Ctrl-C."""
    if not 0 <= arguments.port < 2**16:
        raise SpecError(f"--port is {arguments.port}; it must be from 0 to 65535.")
    load_settings()  # says what is wrong with them before anything listens
    from forge_orchestration.metrics.server import Dashboard, ended_by_signals, own_names, resolve

    address = resolve(arguments.host, allow_remote=arguments.allow_remote)
    with Dashboard(address, arguments.port, load_settings, own_names(arguments.host)) as server, ended_by_signals(server):
        print(f"Quest view: {server.url} (also {server.url}metrics and {server.url}api/quests/status; Ctrl-C ends it)", flush=True)
        server.serve_forever()
    return 0
