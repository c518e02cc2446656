"""What programs need is no attack: each protection is one that numba, R, Java and multiprocessing can live with."""

from __future__ import annotations

import json
import textwrap

from forge_orchestration_tests.conftest import Forge


def test_numba_like_programs_keep_working(forge: Forge) -> None:
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
