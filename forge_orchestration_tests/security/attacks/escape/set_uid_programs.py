"""Runs every set-uid program of the host, and set-uid copies of its own, to be root for a moment.

From: pkexec's CVE-2021-4034 and sudo's CVE-2021-3156 need no more than to be started.
"""

import os
import shutil
import stat
import subprocess

from evidence import attempt, done, read, say

found = [
    os.path.join(folder, name)
    for folder in ("/usr/bin", "/usr/sbin", "/usr/lib/openssh", "/usr/lib/dbus-1.0", "/usr/libexec")
    if os.path.isdir(folder)
    for name in os.listdir(folder)
    if os.stat(os.path.join(folder, name), follow_symlinks=False).st_mode & (stat.S_ISUID | stat.S_ISGID)
    and stat.S_ISREG(os.stat(os.path.join(folder, name)).st_mode)
]
who = []
for program in found:
    try:
        running = subprocess.Popen(
            [program, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except PermissionError:
        continue
    try:
        status = read(f"/proc/{running.pid}/status", 4096).decode()
        who.append([program, status.split("Uid:")[1].split()[1], status.split("CapEff:")[1].split()[0]])
    except OSError:
        who.append([program, "ended", ""])
    running.kill()
    running.communicate()
say(found=found, who=who)
for folder in ("/forge/scratch", "/forge/outputs", "/tmp", "/dev/shm"):
    copy = f"{folder}/python"
    shutil.copy(shutil.which("dash") or "/bin/sh", copy)
    attempt(f"set-uid bit in {folder}", os.chmod, copy, 0o6755)
    said = subprocess.run([copy, "-c", "grep -E '^(Uid|CapEff)' /proc/self/status"], capture_output=True, text=True)
    say(copy=folder, said=said.stdout.split())
    attempt(f"to root in {folder}", os.chown, copy, 0, 0)
done()
