"""A run's worker: what `dagster api execute_run` and `resume_run` do, with what they take as arguments read from standard input.

Arguments are seen by every user of the host, and a reference to a Dagster instance may hold whatever its `dagster.yaml` says.
"""

import gc
import sys

import msgspec

from forge_orchestration.model.compiled import compiled


@compiled
class RunOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Which run of which instance.

    Attributes:
        instance_ref: As Dagster serialises it.
        resume: Whether an earlier worker of the run has died.
    """

    run_id: str
    instance_ref: str
    resume: bool


def main() -> None:
    """Entry point of the process; its exit status is 1 if the run failed."""
    # Dagster's imports make a million objects that all stay: to look through them for garbage takes a fifth of the time
    gc.disable()
    from dagster._cli.api import _execute_run_command_body, _resume_run_command_body
    from dagster._cli.utils import get_instance_for_cli
    from dagster._core.instance.ref import InstanceRef
    from dagster._serdes import deserialize_value
    from dagster._utils.interrupts import capture_interrupts

    from forge_orchestration.orchestration.instance import ForgeInstance

    gc.freeze()
    gc.enable()
    with capture_interrupts():
        order = msgspec.json.decode(sys.stdin.buffer.read(), type=RunOrder)
        execute = _resume_run_command_body if order.resume else _execute_run_command_body
        with get_instance_for_cli(instance_ref=deserialize_value(order.instance_ref, InstanceRef)) as instance:
            if isinstance(instance, ForgeInstance):
                instance.ends_with_its_storage = True
            # events are in the event log; Dagster's own command keeps all of them in memory too
            sys.exit(execute(order.run_id, instance, lambda event: None, set_exit_code_on_failure=True))


if __name__ == "__main__":
    main()
