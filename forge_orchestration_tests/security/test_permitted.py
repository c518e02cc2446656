"""What programs need is no attack: each protection is one that numba, R, Java and multiprocessing can live with."""

from __future__ import annotations

import json
import textwrap

from forge_orchestration_tests.conftest import Forge, host_program


def test_what_numba_and_multiprocessing_are_made_of(forge: Forge) -> None:
    """Multiprocessing, threads, shared memory, signals and executable mappings."""
    code = """
    import concurrent.futures, json, mmap, multiprocessing, multiprocessing.shared_memory, threading
    block = multiprocessing.shared_memory.SharedMemory(create=True, size=1 << 20); block.buf[0] = 7
    with concurrent.futures.ThreadPoolExecutor(4) as pool: threads = list(pool.map(abs, [-1, -2]))
    with multiprocessing.get_context("fork").Pool(2) as pool: forked = pool.map(abs, [-3, -4])
    with multiprocessing.get_context("fork").Manager() as manager: managed = list(manager.list([5]))
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    block.close(); block.unlink()
    print(json.dumps({"threads": threads, "forked": forked, "managed": managed}))
    """
    done = forge("exec", "--memory", "256MiB", "--scratch", "32MiB", "--", "python", "-c", textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"threads": [1, 2], "forked": [3, 4], "managed": [5]}


def test_r(forge: Forge) -> None:
    """With two processes of its own."""
    host_program("Rscript", "r-base-core")
    code = "library(parallel); cat(unlist(mclapply(1:4, function(n) n^2, mc.cores = 2)), round(summary(lm(dist ~ speed, cars))$r.squared, 4))"
    done = forge("exec", "--memory", "512MiB", "--scratch", "32MiB", "--", "Rscript", "-e", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "4", "9", "16", "0.6511"]


def test_java(forge: Forge) -> None:
    """Its threads, its compiler, its cryptography, and that it sees its own memory limit and not the host's memory."""
    host_program("java", "default-jre-headless")
    done = forge("exec", "--memory", "512MiB", "--", "java", "-XshowSettings:all", "-XX:MaxRAMPercentage=50", "-version")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "Security provider static configuration" in said and "Max. Heap Size" in said, said
