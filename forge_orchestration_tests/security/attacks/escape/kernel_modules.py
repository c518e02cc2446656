"""Loads a kernel module, and has the kernel load one for it."""

import os
import subprocess

from evidence import attempt, done, say, syscall

module = b"\x7fELF\x02\x01\x01".ljust(4096, b"\0")
attempt("init_module", syscall, "init_module", module, len(module), b"")
with open("/forge/scratch/harm.ko", "wb") as file:
    file.write(module)
attempt("finit_module", syscall, "finit_module", os.open("/forge/scratch/harm.ko", os.O_RDONLY), b"", 0)
attempt("delete_module", syscall, "delete_module", b"loop", os.O_NONBLOCK)
attempt("kexec_load", syscall, "kexec_load", 0, 0, 0, 0)
attempt("kexec_file_load", syscall, "kexec_file_load", -1, -1, 0, b"", 0)
for tool in ("/sbin/modprobe", "/sbin/insmod", "/sbin/kexec"):
    if os.path.exists(tool):
        tried = subprocess.run([tool, "/forge/scratch/harm.ko"], capture_output=True, text=True)
        say(tool=tool, status=tried.returncode)
done()
