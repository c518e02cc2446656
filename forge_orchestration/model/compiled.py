"""Types that are read by several threads at once.

msgspec compiles a type when it first reads one, and while it does, another thread finds the type half compiled: the process
crashes. So a type that threads may read is compiled where it is defined, while its module is being imported.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def compiled(kind: type[T]) -> type[T]:
    """Class decorator: compile `kind`, and all that it is made of, now."""
    msgspec.json.Decoder(kind)
    return kind
