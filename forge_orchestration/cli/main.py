"""Arguments, and what becomes of errors: one sentence on stderr and the exit status of the design's table."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from forge_orchestration import __version__
from forge_orchestration.errors import ForgeError, SpecError
from forge_orchestration.sandbox.spawn import start_early


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(f"{message[0].upper()}{message[1:]}.", f"See: {self.prog} --help")


def command() -> NoReturn:
    """The `forge` command. It leaves without taking the interpreter apart, which takes a fifth of the time of a short execution."""
    _open_standard_streams()
    status = main()
    with contextlib.suppress(OSError):  # of whoever has gone nothing more can be told; what matters was flushed before
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _open_standard_streams() -> None:
    """Those that the caller has closed (`>&-`) lead nowhere: else the next file that is opened, the store's say, would be one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (for as long as the process lives)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (for as long as the process lives)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    debug = False
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["exec"], ["run"], ["resume"]) and not {"-h", "--help"} & set(words):
        start_early()
    try:
        arguments = _parser().parse_args(argv)
        debug = arguments.debug
        command: Callable[[argparse.Namespace], int] = arguments.command
        status = command(arguments)
        sys.stdout.flush()
        return status
    except ForgeError as error:
        if debug:
            raise
        print(f"forge: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader has gone (`forge … | head`): nothing more can be said, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception as error:
        if debug:
            raise
        print(
            f"forge: internal error: {type(error).__name__}: {error} (run it again with --debug for the details)", file=sys.stderr
        )
        return 70


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="forge", description="Run analyses in named runtimes, inside sandboxes.")
    parser.add_argument("--version", action="version", version=f"forge {__version__}")
    parser.add_argument("--debug", action="store_true", help="show a traceback instead of a sentence")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_run(commands)
    _add_exec(commands)
    _add_resume(commands)
    _add_replay(commands)
    _add_publish(commands)
    _add_executions(commands)
    _add_runtimes(commands)
    _add_executors(commands)
    _add_host(commands)
    _add_metrics(commands)
    return parser


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    run = commands.add_parser(
        "run", help="run an analysis", description="Run an analysis by its name, or by the path of its folder."
    )
    _what_to_run(run)
    _common(run)
    run.set_defaults(command=_lazily("run", "run_analysis"))
    for name, text, function in (
        ("why", "why it would be run or not: what has changed since the last time", "explain"),
        ("fingerprint", "what decides the result of an analysis", "show_fingerprint"),
    ):
        asked = commands.add_parser(
            name, help=text, description=f"Say {text}. Nothing is run. The arguments are those of forge run."
        )
        _what_to_run(asked)
        _decisive(asked)
        asked.add_argument("--json", action="store_true", help="print JSON")
        asked.set_defaults(command=_lazily("reuse", function))
    listing = commands.add_parser("analyses", help="list the analyses")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_lazily("run", "list_analyses"))


def _what_to_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("analysis", metavar="ANALYSIS", help="a name (see: forge analyses), or a folder with an analysis.yaml")
    parser.add_argument("--stage", metavar="S", help="only this stage of an analysis in stages")
    parser.add_argument("--runtime", metavar="R", help="another runtime than the analysis' own")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=PATH", help="another file for a declared input")
    parser.add_argument("--partition", metavar="KEY", help="which part of an analysis that has partitions")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated")


def _decisive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, metavar="N", help="random seed, in $FORGE_SEED")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for numerical libraries")


def _add_resume(commands: argparse._SubParsersAction[_Parser]) -> None:
    resume = commands.add_parser(
        "resume", help="go on with an execution that did not succeed",
        description="Run an execution that did not succeed once more, with the same files and parameters, from its last checkpoint."
        " Limits may be others.",
    )  # fmt: skip
    resume.add_argument("execution", metavar="ID", help="an execution's id, or `last`")
    _execution_options(resume)
    resume.set_defaults(command=_lazily("run", "resume_execution"))


def _add_replay(commands: argparse._SubParsersAction[_Parser]) -> None:
    replay = commands.add_parser(
        "replay", help="run an execution again and compare the outputs byte by byte",
        description="Run an execution that succeeded again, from its record, in a runtime of the same content, and compare the"
        " outputs byte by byte. Exit status 0 if they are identical, 1 if not.",
    )  # fmt: skip
    replay.add_argument("execution", metavar="ID", help="an execution's id, or `last`")
    replay.add_argument("--executor", metavar="E", help="where to run it (default: where it ran)")
    replay.add_argument("--force", action="store_true", help="also if something that decides the result is no longer the same")
    replay.add_argument("--json", action="store_true", help="print JSON")
    replay.set_defaults(command=_lazily("reuse", "replay_execution"))


def _add_publish(commands: argparse._SubParsersAction[_Parser]) -> None:
    publish = commands.add_parser(
        "publish", help="bring results to their databases and folders that could not be published before",
        description="Publish what an execution was to publish, and has not; without an id what all were to. Nothing is published twice."
        " Exit status 7 if something cannot be published.",
    )  # fmt: skip
    publish.add_argument("execution", nargs="?", metavar="ID", help="an execution's id, or `last` (default: all)")
    publish.add_argument("--force", action="store_true", help="also of an execution that is suspect")
    publish.set_defaults(command=_lazily("publish", "publish_results"))


def _add_exec(commands: argparse._SubParsersAction[_Parser]) -> None:
    execute = commands.add_parser(
        "exec", help="run any command in a sandbox",
        description="Run a command in a sandbox. It starts in its scratch folder; what it writes to $FORGE_OUTPUTS is kept.",
    )  # fmt: skip
    execute.add_argument("--runtime", metavar="R", help="runtime to run it in (default: forge-python)")
    execute.add_argument(
        "--input", action="append", default=[], metavar="NAME=PATH", help="a file or folder, seen at $FORGE_INPUTS/NAME"
    )
    execute.add_argument(
        "--output", action="append", default=[], metavar="PATTERN", help="what must be in $FORGE_OUTPUTS at the end, e.g. '*.csv'"
    )
    execute.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="an environment variable")
    _common(execute)
    execute.add_argument("words", nargs="*", metavar="-- COMMAND", help="the command and its arguments")
    execute.set_defaults(command=_lazily("run", "run_command"))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--executor", metavar="E", help="where to run it (default: local)")
    _decisive(parser)
    parser.add_argument(
        "--cache", metavar="POLICY",
        help="an earlier result of the very same: use it, refresh it, off (neither use nor keep one), only (run nothing)",
    )  # fmt: skip
    parser.add_argument("--priority", type=int, metavar="N", help="of those that wait for room, the highest is first (default: 0)")
    _execution_options(parser)


def _execution_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="refuse to run it (exit status 5) rather than wait for room")
    parser.add_argument("--json", action="store_true", help="print the record as JSON, and nothing else, on stdout")
    limits = parser.add_argument_group("limits")
    for name, example, text in (
        ("memory", "2GiB", "of the whole process tree"), ("cpus", "1.5", "cores"), ("pids", "100", "processes and threads"),
        ("wall-time", "30min", "until SIGTERM"), ("grace", "5s", "from SIGTERM to SIGKILL"),
        ("scratch", "2GiB", "scratch and outputs together"), ("log", "64MiB", "kept of each log stream"),
        ("files", "131072", "files in scratch and outputs together"), ("open-files", "4096", "descriptors of each process"),
    ):  # fmt: skip
        limits.add_argument(f"--{name}", metavar=example, help=text)


def _add_executions(commands: argparse._SubParsersAction[_Parser]) -> None:
    executions = commands.add_parser("executions", help="list executions, show one, follow its logs")
    actions = executions.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    listing = actions.add_parser("list", help="the newest first")
    listing.add_argument("--limit", type=int, default=20, metavar="N", help="how many (default: 20)")
    listing.add_argument("--analysis", metavar="A", help="only of this analysis")
    listing.add_argument("--status", metavar="S", help="only with this status")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_lazily("executions", "list_executions"))
    show = actions.add_parser("show", help="the record of one")
    show.add_argument("execution", metavar="ID", help="an execution's id, or `last`")
    show.add_argument("--json", action="store_true", help="print the record as JSON")
    show.set_defaults(command=_lazily("executions", "show_execution"))
    for name, text in (("pin", "keep one from being removed by forge gc"), ("unpin", "let it be removed again")):
        kept = actions.add_parser(name, help=text)
        kept.add_argument("execution", metavar="ID", help="an execution's id, or `last`")
        kept.set_defaults(command=_lazily("executions", f"{name}_execution"))
    logs = actions.add_parser("logs", help="what it printed")
    logs.add_argument("execution", metavar="ID", help="an execution's id, or `last`")
    logs.add_argument("--stream", choices=["stdout", "stderr", "messages", "all"], default="all", help="only one stream")
    logs.add_argument("--follow", action="store_true", help="go on until it has ended")
    logs.set_defaults(command=_lazily("executions", "show_logs"))


def _add_runtimes(commands: argparse._SubParsersAction[_Parser]) -> None:
    runtimes = commands.add_parser("runtimes", help="list, show, build, verify and repair runtimes")
    actions = runtimes.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    listing = actions.add_parser("list", help="all runtimes and their state")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_lazily("runtimes", "list_runtimes"))
    show = actions.add_parser("show", help="one runtime: digests, packages, findings")
    show.add_argument("runtime", metavar="R")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(command=_lazily("runtimes", "show_runtime"))
    add = actions.add_parser(
        "add", help="define a runtime from a lock, from what can be locked, or from an environment that is there",
        description="Define a runtime. SOURCE is a lock (requirements.txt with hashes, pylock.toml, conda-lock.yml, pixi.lock, an "
        "explicit list), what is locked now (requirements.txt without hashes, environment.yml), or the folder of a conda environment, "
        "which is used where it is.",
    )  # fmt: skip
    add.add_argument("runtime", metavar="NAME")
    add.add_argument("source", nargs="?", metavar="SOURCE")
    add.add_argument(
        "--packages", nargs="+", default=[], metavar="P", help="instead: packages of the distribution, as installed here"
    )
    add.add_argument("--image", default="", metavar="I", help="instead: an image by its digest, NAME@sha256:… or sha256:…")
    add.add_argument(
        "--import", dest="modules", nargs="+", default=[], metavar="M", help="Python modules that its self-test imports"
    )
    add.add_argument("--description", default="", metavar="TEXT")
    add.add_argument("--replace", action="store_true", help="replace a definition that was added so before")
    add.set_defaults(command=_lazily("runtimes", "add_runtime"))
    diff = actions.add_parser("diff", help="what differs between two runtimes, or two builds of one: packages and files")
    diff.add_argument("runtimes", nargs=2, metavar="R", help="NAME or NAME@BUILD")
    diff.add_argument("--json", action="store_true", help="print JSON")
    diff.set_defaults(command=_lazily("runtimes", "diff_runtimes"))
    build = actions.add_parser("build", help="build runtimes from their locks")
    build.add_argument("runtimes", nargs="+", metavar="R")
    build.add_argument("--force", action="store_true", help="build anew even if it is there and whole")
    build.set_defaults(command=_lazily("runtimes", "build_runtimes"))
    verify = actions.add_parser("verify", help="compare runtimes with what was built; exit status 4 if one is not as it should be")
    verify.add_argument("runtimes", nargs="*", metavar="R", help="default: all that are built")
    verify.add_argument("--full", action="store_true", help="read every file, ask the packages, and run the self-test")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(command=_lazily("runtimes", "verify_runtimes"))
    repair = actions.add_parser("repair", help="build one anew from its lock, and put it in the place of the one that is there")
    repair.add_argument("runtime", metavar="R")
    repair.set_defaults(command=_lazily("runtimes", "repair_runtime"))
    quarantine = actions.add_parser("quarantine", help="keep a build from being used, or release it")
    quarantine.add_argument("runtime", metavar="R")
    quarantine.add_argument("--reason", default="by hand", metavar="TEXT", help="what whoever asks for it is told")
    quarantine.add_argument("--release", action="store_true", help="let it be used again")
    quarantine.set_defaults(command=_lazily("runtimes", "quarantine_runtime"))
    gc = actions.add_parser("gc", help="remove builds that no definition asks for and no execution has mounted")
    gc.set_defaults(command=_lazily("runtimes", "collect_garbage"))


def _add_executors(commands: argparse._SubParsersAction[_Parser]) -> None:
    executors = commands.add_parser("executors", help="list where analyses can run")
    actions = executors.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser)
    listing = actions.add_parser("list", help="each executor: whether it can be used here, what it enforces, what it cannot")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_lazily("executors", "list_executors"))


def _add_host(commands: argparse._SubParsersAction[_Parser]) -> None:
    doctor = commands.add_parser("doctor", help="what works on this host, what does not, and what to do about it")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_lazily("host", "doctor"))
    health = commands.add_parser("health", help="the same, and whether databases, store and outputs are whole")
    health.add_argument("--full", action="store_true", help="read everything: runtimes, outputs, databases with their indexes")
    health.add_argument("--json", action="store_true", help="print JSON")
    health.set_defaults(command=_lazily("host", "health"))
    gc = commands.add_parser(
        "gc", help="close executions that a crash left open, and remove what they left behind; and old results, by rules",
        description="Close executions that a crash left open, and remove what they left behind. With --older-than or --max-size, show"
        " which ended executions could be removed besides; with --remove, remove them. Never removed are pinned ones, what others have"
        " read, and the last results.",
    )  # fmt: skip
    gc.add_argument("--older-than", metavar="90d", help="what ended longer ago than that")
    gc.add_argument("--max-size", metavar="500GiB", help="the oldest, until all together take no more than that")
    gc.add_argument(
        "--keep-last", type=int, metavar="N", help="results of each analysis and partition that stay in any case (default: 1)"
    )
    gc.add_argument("--remove", action="store_true", help="remove them; else they are only shown")
    gc.add_argument("--json", action="store_true", help="print JSON")
    gc.set_defaults(command=_lazily("host", "collect_garbage"))


def _add_metrics(commands: argparse._SubParsersAction[_Parser]) -> None:
    metrics = commands.add_parser("metrics", help="print metrics in Prometheus' text format")
    metrics.set_defaults(command=_lazily("metrics", "print_metrics"))
    dashboard = commands.add_parser("dashboard", help="serve the Quest view, its JSON and the metrics on this host")
    dashboard.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)")
    dashboard.add_argument("--port", type=int, default=3030, metavar="N", help="port (default: 3030; 0: any that is free)")
    dashboard.add_argument("--allow-remote", action="store_true", help="let --host be an address that others can reach")
    dashboard.set_defaults(command=_lazily("metrics", "serve_dashboard"))


def _lazily(module: str, function: str) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        from importlib import import_module

        run: Callable[[argparse.Namespace], int] = getattr(import_module(f"forge_orchestration.cli.{module}"), function)
        return run(arguments)

    return command


if __name__ == "__main__":
    command()
