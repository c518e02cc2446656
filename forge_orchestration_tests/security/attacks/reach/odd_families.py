"""Opens a socket of every family that is not local or internet: old and rare code, which the kernel loads when asked.

From: CVE-2010-4165 (AF_ECONET) to CVE-2023-32233; AF_ALG's CVE-2013-7421 loaded any module by name.
"""

from evidence import attempt, done, syscall

UNIX, INET, INET6, NETLINK = 1, 2, 10, 16
for family in range(3, 64):
    if family not in (INET6, NETLINK):
        for kind in (1, 2, 3, 5):
            attempt(f"family {family} kind {kind}", syscall, "socket", family, kind, 0)
done()
