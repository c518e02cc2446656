"""Config values that are refused before a run is made, where Dagster resolves a launch's config, and not by a step that has begun."""

from collections.abc import Callable
from typing import Any

from dagster._config import ConfigScalar, ConfigScalarKind, PostProcessingError

from forge_orchestration.errors import ForgeError


class Checked(ConfigScalar):
    """A number or text of which Dagster knows the type, and `check` which of them are allowed.

    Args:
        key: Types of one key are one type.
        check: Raises what is wrong with a value.
    """

    def __init__(self, key: str, kind: ConfigScalarKind, check: Callable[[Any], object]) -> None:
        super().__init__(key, key, kind)
        self._check = check

    def post_process(self, value: Any) -> Any:
        """The value.

        Raises:
            PostProcessingError: It is not allowed; the sentence says why.
        """
        try:
            self._check(value)
        except ForgeError as error:
            raise PostProcessingError(str(error)) from None
        return float(value) if self.scalar_kind is ConfigScalarKind.FLOAT else value
