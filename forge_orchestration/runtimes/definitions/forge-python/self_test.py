"""Show that this runtime works: the parts of the standard library that a badly built Python lacks, with known answers.

A Python compiled on a host without the right headers starts and passes for healthy, and fails at ``import sqlite3`` in
the middle of an analysis.
"""

import sys


def expect(condition: bool, otherwise: str) -> None:
    """Raise where a check fails; unlike ``assert`` also under ``python -O``."""
    if not condition:
        raise RuntimeError(otherwise)


def check() -> str:
    """Return a sentence on what was checked; any error is the failure."""
    import bz2
    import ctypes
    import decimal
    import hashlib
    import lzma
    import sqlite3
    import ssl
    import statistics
    import zlib

    expect((3, 11) <= sys.version_info < (3, 14), f"Python {sys.version.split()[0]} is not one of 3.11 to 3.13")
    text = b"forge" * 1000
    for codec in (zlib, bz2, lzma):
        expect(codec.decompress(codec.compress(text)) == text, f"{codec.__name__} does not return what it was given")
    digest = hashlib.sha256(b"abc").hexdigest()
    expect(digest.startswith("ba7816bf8f01cfea") and digest.endswith("f20015ad"), "sha256 is wrong")
    expect(decimal.Decimal(2).sqrt() == decimal.Decimal("1.414213562373095048801688724"), "decimal arithmetic is wrong")
    expect(statistics.linear_regression([0, 1, 2], [1, 3, 5]) == (2.0, 1.0), "floating-point arithmetic is wrong")
    with sqlite3.connect(":memory:") as database:
        expect(database.execute("select sum(value) from json_each('[1, 2, 39]')").fetchone() == (42,), "sqlite is wrong")
    expect(ctypes.sizeof(ctypes.c_void_p) == 8, "this Python is not a 64-bit one")
    expect(ssl.OPENSSL_VERSION_INFO >= (1, 1, 1), f"{ssl.OPENSSL_VERSION} is too old")
    return f"Python {sys.version.split()[0]} and its standard library work."


if __name__ == "__main__":
    try:
        print(check())
    except Exception as error:  # whatever a broken runtime raises, the answer is one sentence
        print(f"This runtime is broken: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
