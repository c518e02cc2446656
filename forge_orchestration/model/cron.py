"""Times as cron writes them, checked where settings are read, so that a mistake is a sentence there and no surprise in Dagster."""

from __future__ import annotations

import re

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 7))
_PART = re.compile(r"(?:\*|(\d+)-(\d+))(?:/([1-9]\d{0,3}))?|(\d+)")


def check_cron(text: str) -> None:
    """Refuse what is not five fields of numbers, `*`, ranges and steps.

    Raises:
        ValueError: Which field is wrong.
    """
    fields = text.split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"'{text}' is not five fields as cron has them, such as '0 3 * * *' for three in the night")
    for (what, least, most), field in zip(_FIELDS, fields, strict=True):
        for part in field.split(","):
            found = _PART.fullmatch(part)
            first, last, step, alone = (int(number) if number else None for number in found.groups()) if found else (None,) * 4
            numbers = [number for number in (first, last, alone) if number is not None]
            if (
                found is None
                or (step or 0) > most
                or numbers != sorted(numbers)
                or any(not least <= number <= most for number in numbers)
            ):
                raise ValueError(
                    f"'{field}' in '{text}' is no {what}, which is a number from {least} to {most}, a range such as {least}-{most}, or *"
                )
