"""The sandbox's file system: a short list of the host's system folders, the paths under `/forge`, and nothing else."""

from __future__ import annotations

import os

ANALYSIS = "/forge/analysis"
INPUTS = "/forge/inputs"
PARAMS = "/forge/params.json"
OUTPUTS = "/forge/outputs"
CHECKPOINT = "/forge/checkpoint"
MESSAGES = "/forge/messages"
SCRATCH = "/forge/scratch"
RUNTIME = "/forge/runtime"
LIB = "/forge/lib"
INIT = "/forge/init"
"""In a container: its first process, which is ours and no image's."""
README = "/forge/README"
README_TEXT = """This is the sandbox of one execution. Its files:

  /forge/analysis     the analysis' own files, read-only      $FORGE_ANALYSIS
  /forge/inputs       the declared inputs, read-only          $FORGE_INPUTS
  /forge/params.json  the parameters                          $FORGE_PARAMS
  /forge/outputs      what is written here is kept            $FORGE_OUTPUTS
  /forge/checkpoint   for the analysis' own checkpoints       $FORGE_CHECKPOINT
  /forge/messages     JSON lines: log, progress, metadata     $FORGE_MESSAGES
  /forge/scratch      removed at the end                      $TMPDIR, $HOME, the current folder
  /forge/runtime      the software environment, read-only
  /forge/lib          forge_checkpoint.py, for Python         $PYTHONPATH
"""

# folders of the workspace and where they appear; all of them share the scratch limit
WORKSPACE = {"scratch": SCRATCH, "outputs": OUTPUTS, "checkpoint": CHECKPOINT, "tmp": "/tmp"}

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "LOKY_MAX_CPU_COUNT",
)  # fmt: skip
_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# what programs look for in /etc that says nothing of the host: the loader's cache, Debian's alternatives, fonts, R's start files;
# and, below, Java's settings, without which it has no cryptography
_ETC = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts", "/etc/R")

# files made for the sandbox: who it runs as, and that it is alone on its network
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
NSSWITCH = "passwd: files\ngroup: files\nhosts: files\n"


def passwd(uid: int, gid: int) -> str:
    """`/etc/passwd` with root, the execution's own user, and nobody."""
    return (
        f"root:x:0:0:root:/:/usr/sbin/nologin\nforge:x:{uid}:{gid}:forge:{SCRATCH}:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    )


def group(gid: int) -> str:
    """`/etc/group` to go with `passwd`."""
    return f"root:x:0:\nforge:x:{gid}:\nnogroup:x:65534:\n"


def system_view() -> tuple[tuple[str, ...], dict[str, str]]:
    """Folders of this host to bind read-only at their own paths, and links to make (a merged `/usr` has them)."""
    binds = ["/usr"]
    links: dict[str, str] = {}
    for name in _PROGRAMS:
        path = f"/{name}"
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.isdir(path):
            binds.append(path)
    binds += [path for path in _ETC if os.path.exists(path)]
    binds += sorted(f"/etc/{name}" for name in os.listdir("/etc") if name.startswith("java-") and os.path.isdir(f"/etc/{name}"))
    return tuple(binds), links


def environment(
    *, activation: dict[str, str], declared: dict[str, str], seed: int, threads: int, deadline: float, partition: str | None = None
) -> dict[str, str]:
    """The whole environment of a command: built from nothing, in this order, so that Forge's own variables always hold.

    Args:
        activation: What the runtime sets (`PATH`, `VIRTUAL_ENV` …).
        declared: What the analysis declares.
        deadline: When the wall limit is reached, seconds since the epoch.
        partition: Key of the part of the analysis that is meant, if it has any.
    """
    path = activation.get("PATH", "")
    modules = declared.get("PYTHONPATH") or activation.get("PYTHONPATH")
    return {
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONUNBUFFERED": "1",  # what an analysis prints is seen while it runs
        **{variable: str(threads) for variable in _THREAD_VARIABLES},
        **activation,
        **declared,
        "PATH": f"{path}:/usr/local/bin:/usr/bin:/bin" if path else "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": f"{modules}:{LIB}" if modules else LIB,
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        "USER": "forge",
        "LOGNAME": "forge",
        "FORGE_ANALYSIS": ANALYSIS,
        "FORGE_INPUTS": INPUTS,
        "FORGE_PARAMS": PARAMS,
        "FORGE_OUTPUTS": OUTPUTS,
        "FORGE_CHECKPOINT": CHECKPOINT,
        "FORGE_MESSAGES": MESSAGES,
        "FORGE_SCRATCH": SCRATCH,
        "FORGE_SEED": str(seed),
        "FORGE_THREADS": str(threads),
        "FORGE_DEADLINE": f"{deadline:.3f}",
        **({} if partition is None else {"FORGE_PARTITION": partition}),
    }
