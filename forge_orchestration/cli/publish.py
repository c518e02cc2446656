"""`forge publish`."""

from __future__ import annotations

import argparse
import sys

from forge_orchestration.cli.executions import folder_of
from forge_orchestration.cli.run import UNPUBLISHED, canceled_by_signals
from forge_orchestration.cli.show import published_sentence
from forge_orchestration.engine import Engine
from forge_orchestration.errors import ForgeError
from forge_orchestration.executions.publication import marked
from forge_orchestration.settings import load_settings


def publish_results(arguments: argparse.Namespace) -> int:
    """`forge publish`."""
    settings = load_settings()
    engine = Engine(settings)
    status, found = 0, False
    with canceled_by_signals() as (cancel, _):
        for execution_id in [arguments.execution] if arguments.execution else marked(settings):
            try:
                record = folder_of(execution_id, settings).read_record()
                if not record.status.is_final and not arguments.execution:
                    continue  # it runs: who waits for it will publish it
                record = engine.publish_pending(record, cancel=cancel, force=arguments.force)
            except ForgeError as error:
                if arguments.execution:
                    raise
                print(f"forge: {execution_id}: {error}", file=sys.stderr)
                status = error.exit_code
                continue
            for one in record.published:
                found = True
                print(f"{record.execution_id}  {one.name}: {published_sentence(one)}", flush=True)
            if record.unpublished:
                status = UNPUBLISHED
    engine.close()
    if not found and not status:
        print("nothing is to be published", file=sys.stderr)
    return status
