"""What a kind of runtime has installed, or found: everything that its seal and its launches need to know of it."""

from __future__ import annotations

import msgspec

from forge_orchestration.sandbox.view import RUNTIME


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a runtime, before they are sealed.

    Attributes:
        basis: What decides what it does and is in none of its files: version of the interpreter, packages beneath it.
        packages: Version by name.
        python, base_prefix, prefix, mount, site_packages, activation: As in `catalog.Runtime`.
        activation_script: A shell script that sets more variables; it may run what the packages brought.
        listed: Paths relative to the prefix, where not all that lies there belongs to it.
        original: sha256 by path of files in which the installer has written where they are, as they were before.
    """

    basis: str
    packages: dict[str, str]
    python: str = ""
    base_prefix: str = ""
    prefix: str = ""
    mount: str = RUNTIME
    site_packages: str = ""
    activation: dict[str, str] = {}
    activation_script: str = ""
    listed: list[str] | None = None
    original: dict[str, str] = {}
