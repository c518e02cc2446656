"""Runs the host's own tools for leaving: they are in `/usr`, and must be as powerless as it is."""

import shutil
import subprocess
import time

from evidence import done, say

TOOLS = {
    "nsenter": ["nsenter", "--target", "1", "--mount", "true"],
    "chroot": ["chroot", "/", "true"],
    "mount": ["mount", "-t", "tmpfs", "x", "/tmp"],
    "umount": ["umount", "/tmp"],
    "setpriv": ["setpriv", "--reuid=0", "true"],
    "losetup": ["losetup", "-f"],
    "newuidmap": ["newuidmap", "1", "0", "0", "1"],
    "su": ["su", "-c", "true"],
    "sudo": ["sudo", "-n", "true"],
    "pkexec": ["pkexec", "true"],
    "systemd-run": ["systemd-run", "--user", "true"],
    "systemctl": ["systemctl", "status"],
    "machinectl": ["machinectl", "list"],
    "docker": ["docker", "ps"],
    "at": ["at", "now"],
    "crontab": ["crontab", "-l"],
    "dmesg": ["dmesg"],
    "gdb": ["gdb", "-p", "1", "-batch"],
    "strace": ["strace", "true"],
    "ip": ["ip", "link", "add", "harm", "type", "dummy"],
    "iptables": ["iptables", "-L"],
    "sysctl": ["sysctl", "-w", "kernel.domainname=harm"],
    "hostname": ["hostname", "harm"],
    "date": ["date", "-s", f"@{time.time():.0f}"],
    "swapon": ["swapon", "/forge/params.json"],
    "wall": ["wall", "harm"],
    "loginctl": ["loginctl", "list-sessions"],
    "busctl": ["busctl", "list"],
    "journalctl": ["journalctl", "-n", "1"],
}
for name, words in TOOLS.items():
    if shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin"):
        try:
            tried = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, env={"PATH": "/usr/bin:/usr/sbin"}
            )
        except OSError as error:
            say(tool=name, status=126, said=error.strerror)
        else:
            say(tool=name, status=tried.returncode, said=(tried.stdout + tried.stderr)[:200])
    else:
        say(tool=name, status=None, said="not there")
done()
