"""Checks that a bare command and an `analysis.yaml` share. Light: `forge exec` loads nothing else of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast, get_args

from forge_orchestration.errors import SpecError
from forge_orchestration.model.sections import CachePolicy
from forge_orchestration.model.spec import InputSource

_URL = re.compile(r"(https?|s3|file)://[^\s#{}]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_output_pattern(pattern: str, what: str) -> None:
    """Refuse a pattern that could match nothing beneath `/forge/outputs`.

    Raises:
        SpecError: It is empty, absolute, or leads out of the folder.
    """
    if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise SpecError(f"The {what} is {pattern!r}.", "Write a file name or pattern relative to $FORGE_OUTPUTS.")


def check_command(words: Sequence[str], where: str) -> None:
    """Refuse what cannot be executed.

    Raises:
        SpecError: No program, a NUL byte, or a program that `env` would take for a variable.
    """
    if not words or not words[0]:
        raise SpecError(f"There is no command to run in {where}.", "Give it as words: [python, script.py].")
    if not all(isinstance(word, str) and "\0" not in word for word in words):
        raise SpecError(f"The command in {where} has a word that is no text, or that has a NUL byte in it.")
    if "=" in words[0]:
        raise SpecError(f"The program '{words[0][:80]}' in {where} cannot have '=' in its name.", "To set a variable, use env.")


def check_environment(variables: Mapping[str, str], where: str) -> None:
    """Refuse variables that cannot be, or that are Forge's own.

    Raises:
        SpecError: Names the variable.
    """
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise SpecError(f"'{name[:80]}' in {where} cannot be an environment variable.")
        if name.startswith("FORGE_"):
            raise SpecError(f"The environment variable '{name}' in {where} is Forge's own.", "Choose another name.")


def check_source(name: str, source: InputSource, where: str) -> None:
    """Refuse an input that names no file, or one whose content is not known.

    Raises:
        SpecError: Names it.
    """
    if sum(map(bool, (source.path, source.url, source.database))) != 1:
        raise SpecError(f"Input '{name}' in {where} needs a path, a url or a database, and only one of them.")
    if source.query and not source.database:
        raise SpecError(f"Input '{name}' in {where} has a query without a database.", "Name one of the deployment's.")
    if source.url and not (_URL.fullmatch(source.url) and _SHA256.fullmatch(source.sha256)):
        raise SpecError(
            f"Input '{name}' in {where} has the url {source.url[:200]!r} and the sha256 {source.sha256[:80]!r}.",
            "A url begins with http://, https://, s3:// or file:// and has no '#', and its sha256 is 64 hexadecimal digits in lower case.",
        )
    if source.sha256 and not source.url:
        raise SpecError(f"Input '{name}' in {where} has a sha256 without a url.", "Of files that are there it is computed.")


def check_priority(value: object) -> int:
    """A priority.

    Raises:
        SpecError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not -1000 <= value <= 1000:
        raise SpecError(f"'priority' is {value!r}; it must be a whole number from -1000 to 1000.")
    return value


def check_cache(value: object) -> CachePolicy:
    """What is done with an earlier result.

    Raises:
        SpecError: It is none of the policies.
    """
    if value not in get_args(CachePolicy):
        raise SpecError(f"'cache' is {value!r:.80}; it must be one of {', '.join(get_args(CachePolicy))}.")
    return cast(CachePolicy, value)


def check_count(what: str, value: object, least: int) -> int:
    """A whole number of at least `least`.

    Raises:
        SpecError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise SpecError(f"'{what}' is {value!r}; it must be a whole number of at least {least}.")
    return value
