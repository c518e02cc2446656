"""Asks the host to run something later: cron, at, systemd, D-Bus, and files that are read at the next start."""

import os
import shutil
import subprocess

from evidence import attempt, done, say, write

for path in (
    "/etc/cron.d/harm",
    "/var/spool/cron/crontabs/root",
    "/var/spool/at/harm",
    "/etc/systemd/system/harm.service",
    "/run/systemd/system/harm.service",
    "/etc/rc.local",
    "/etc/profile.d/harm.sh",
    "/etc/ld.so.preload",
    "/root/.bashrc",
    "/usr/lib/systemd/system/harm.service",
    "/etc/udev/rules.d/harm.rules",
):
    attempt(path, write, path, b"harm", os.O_CREAT)
for words in (
    ["crontab", "-"],
    ["at", "now"],
    ["batch"],
    ["systemd-run", "true"],
    ["systemctl", "start", "harm"],
    ["dbus-send", "--system", "/", "a.b"],
):
    if shutil.which(words[0]):
        tried = subprocess.run(words, input=b"* * * * * true\n", capture_output=True, timeout=10)
        say(tool=words[0], status=tried.returncode)
done()
