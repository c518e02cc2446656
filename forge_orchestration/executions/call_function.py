"""Calls one Python function inside a sandbox: copied among an analysis' files, and run there by the runtime's own Python.

    python forge_call.py MODULE QUALIFIED.NAME

Files of `$FORGE_INPUTS` become its arguments by their names, `$FORGE_PARAMS` its keyword arguments, and what it returns the file
`result.*` of `$FORGE_OUTPUTS`. It needs nothing but Python 3.8; pandas, anndata and the like only for values of theirs.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

_HINT = "Return a data frame, an AnnData, an array, a figure, bytes, the path of a file, or what JSON can hold."


class _Absent(Exception):
    """Whatever a module uses to define assets: the runtime need not have Dagster, and the decorated function is itself."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.__name__ = name

    def __str__(self) -> str:
        return f"{self.__name__}: {super().__str__()}"

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if len(arguments) == 1 and not options and (inspect.isfunction(arguments[0]) or inspect.isclass(arguments[0])):
            return arguments[0]
        return _Absent(self.__name__, *arguments)  # which may be raised

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return (_AbsentBase,)

    def __getitem__(self, key: object) -> _Absent:
        return self

    def __or__(self, other: object) -> _Absent:
        return self

    __ror__ = __and__ = __rand__ = __sub__ = __rsub__ = __add__ = __radd__ = __or__

    def __invert__(self) -> _Absent:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __enter__(self) -> _Absent:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class _AbsentBase(Exception):
    """In the place of a class that is not here: it takes anything, and can be raised with what it was given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, *options.values())
        self.__dict__.update(options)


class _AbsentModule(types.ModuleType):
    __path__: Any = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")


class _AbsentFinder:
    """Finds modules of Forge, and those of Dagster that the runtime does not have; but for what is used in a function's body."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if self._pattern.fullmatch(name.split(".", maxsplit=1)[0]):
            return importlib.util.spec_from_loader(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def load(module: str, qualified_name: str) -> Callable[..., Any]:
    """The function, from the file in which it is written."""
    sys.path.insert(0, os.environ["FORGE_ANALYSIS"])
    sys.meta_path.insert(0, _AbsentFinder("forge_orchestration"))
    sys.meta_path.append(_AbsentFinder(r"dagster(?!_pipes$)\w*"))
    found: Any = importlib.import_module(module)
    for name in qualified_name.split("."):
        found = getattr(found, name)
    if not callable(found) or isinstance(found, _Absent):
        raise TypeError(f"{qualified_name} of {module} is no function here")
    function: Callable[..., Any] = found
    return function


def read(path: str, wanted: object) -> Any:
    """A file as a value: by what it is, or as its path where the function wants that."""
    if _named(wanted) == "Path":
        from pathlib import Path

        return Path(path)
    suffix = os.path.splitext(path)[1]
    if suffix == ".bin" or _named(wanted) == "bytes":
        with open(path, "rb") as file:
            return file.read()
    with open(path, "rb") as file:
        head = file.read(8)
    if head.startswith(b"PAR1"):
        import pandas

        return pandas.read_parquet(path)
    if head.startswith(b"\x89HDF"):
        import anndata  # type: ignore[import-not-found]

        return anndata.read_h5ad(path)
    if head.startswith(b"\x93NUMPY"):
        import numpy

        return numpy.load(path, allow_pickle=False)
    if suffix == ".json":
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    if suffix in (".csv", ".tsv") and _named(wanted) == "DataFrame":
        import pandas

        return pandas.read_csv(path, sep="\t" if suffix == ".tsv" else ",")
    from pathlib import Path

    return Path(path)


def _named(annotation: object) -> str:
    text: str = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return text.rsplit(".", maxsplit=1)[-1]


def write(value: Any, folder: str) -> None:
    """A value as the file `result.*`."""
    target = os.path.join(folder, "result")
    kind, package = type(value).__name__, type(value).__module__.split(".")[0]
    if (package, kind) == ("pandas", "DataFrame"):
        value.to_parquet(target + ".parquet")
    elif (package, kind) == ("anndata", "AnnData"):
        value.write_h5ad(target + ".h5ad")
    elif (package, kind) == ("numpy", "ndarray"):
        import numpy

        numpy.save(target + ".npy", value, allow_pickle=False)
    elif (package, kind) == ("matplotlib", "Figure"):
        value.savefig(target + ".png")
    elif isinstance(value, bytes):
        with open(target + ".bin", "wb") as file:
            file.write(value)
    elif isinstance(value, os.PathLike):
        copy = target + (os.path.splitext(os.fspath(value))[1] or ".bin")
        if os.path.realpath(value) != os.path.realpath(copy):  # else it has written it there itself
            shutil.copyfile(value, copy)
    else:
        with open(target + ".json", "w", encoding="utf-8") as file:
            json.dump(value, file, allow_nan=False)
    others = sorted(name for name in os.listdir(folder) if name.startswith("result."))
    if len(others) != 1:
        raise ValueError(f"there are {', '.join(others)}, and the name is the result's alone")


def arguments_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Its positional arguments from files, its keyword arguments from parameters."""
    parameters = inspect.signature(function).parameters
    files = {os.path.splitext(name)[0]: name for name in os.listdir(os.environ["FORGE_INPUTS"])}
    given = {
        name: read(os.path.join(os.environ["FORGE_INPUTS"], file), parameters[name].annotation) for name, file in files.items()
    }
    with open(os.environ["FORGE_PARAMS"], encoding="utf-8") as file:
        given.update(json.load(file))
    if "FORGE_PARTITION" in os.environ and "partition" in parameters:
        given["partition"] = os.environ["FORGE_PARTITION"]
    return given


def main() -> None:
    """Entry point of the process."""
    module, qualified_name = sys.argv[1:]
    sys.argv[1:] = []
    try:
        function = load(module, qualified_name)
        value = function(**arguments_of(function))
    except Exception:
        kind, error, trace = sys.exc_info()
        here = os.path.abspath(__file__)
        while trace is not None and os.path.abspath(trace.tb_frame.f_code.co_filename) == here and trace.tb_next is not None:
            trace = trace.tb_next
        traceback.print_exception(kind, error, trace)
        sys.exit(1)
    try:
        write(value, os.environ["FORGE_OUTPUTS"])
    except (TypeError, ValueError, ImportError, OSError) as error:
        sys.exit(f"The result of {qualified_name}, a {type(value).__name__}, cannot be stored: {error}. {_HINT}")


if __name__ == "__main__":
    main()
