"""Which steps may run in a run's own process: those whose body Forge wrote, which only wait for an execution, and those vouched for.

The body of an ordinary op would run beside the Dagster instance and its secrets, with no limit and no sandbox.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from weakref import WeakSet

import dagster as dg
from dagster._core.definitions.decorators.op_decorator import DecoratedOpFunction
from dagster._core.definitions.dependency import GraphNode, Node, OpNode

TRUSTED_TAG = "forge/trusted"
TRUSTED = {TRUSTED_TAG: "true"}
"""Tags of an op whose author vouches for its body."""

_Body = TypeVar("_Body", bound=Callable[..., Any])
_bodies: WeakSet[Callable[..., Any]] = WeakSet()


def runs_in_sandbox(body: _Body) -> _Body:
    """Remember that an op's body, this very function, does nothing but have an execution run."""
    _bodies.add(body)
    return body


def is_backed(definition: dg.OpDefinition) -> bool:
    """Whether the body of an op is one that only has an execution run."""
    compute = definition.compute_fn
    return isinstance(compute, DecoratedOpFunction) and compute.decorated_fn in _bodies


def check_trust(job: dg.JobDefinition) -> None:
    """Refuse a job with a step whose body would run outside a sandbox without anybody vouching for it.

    Raises:
        DagsterUnmetExecutorRequirementsError: There is one; the sentence names it.
    """
    names = [node.name for node in _op_nodes(job.graph.node_dict.values()) if not _is_trusted(node)]
    if names:
        raise dg.DagsterUnmetExecutorRequirementsError(
            f"The body of {', '.join(repr(name) for name in sorted(names))} would run outside a sandbox, beside Dagster's own data. "
            f'Declare it with @forge_asset or @forge_op, or as an analysis; or, if you vouch for its code, tag the op "{TRUSTED_TAG}": "true".'
        )


def _is_trusted(node: OpNode) -> bool:
    return node.tags.get(TRUSTED_TAG) == "true" or is_backed(node.definition)


def _op_nodes(nodes: Iterable[Node]) -> Iterator[OpNode]:
    for node in nodes:
        if isinstance(node, GraphNode):
            yield from _op_nodes(node.definition.node_dict.values())
        elif isinstance(node, OpNode):
            yield node
