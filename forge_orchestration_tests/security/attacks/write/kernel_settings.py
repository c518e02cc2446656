"""Opens the kernel's settings for writing: the programs that it starts as root, its limits, its console, its interrupts.

Nothing is written: were one of them open, that alone would be the hole, and some of them would stop the machine.

From: a writable `core_pattern` or `modprobe` is how a container with a writable `/proc/sys` becomes root on the host.
"""

import os

from evidence import attempt, done, write

KERNEL = (
    "core_pattern", "modprobe", "hostname", "domainname", "sysrq", "pid_max", "threads-max", "panic", "printk", "shmmax", "msgmax",
    "randomize_va_space", "perf_event_paranoid", "unprivileged_bpf_disabled", "kptr_restrict", "keys/maxkeys",
)  # fmt: skip
OTHERS = (
    "/proc/sys/vm/drop_caches",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/fs/file-max",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/fs/protected_hardlinks",
    "/proc/sys/fs/aio-max-nr",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/ping_group_range",
    "/proc/sys/net/ipv4/ip_unprivileged_port_start",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sysrq-trigger",
    "/proc/mtrr",
    "/proc/irq/default_smp_affinity",
    "/proc/acpi/wakeup",
    "/proc/bus/pci/00",
    "/proc/driver/nvram",
    "/sys/kernel/uevent_helper",
    "/sys/power/state",
    "/sys/fs/cgroup/release_agent",
    "/sys/kernel/debug",
    "/sys/class/net",
)
for path in (*(f"/proc/sys/kernel/{name}" for name in KERNEL), *OTHERS):
    attempt(path, os.open, path, os.O_WRONLY)
attempt("next process number", write, "/proc/sys/kernel/ns_last_pid", b"1")  # open to all, and refused to most
done()
