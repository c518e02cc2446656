"""Asks who has an account on the host, in every way that the C library knows."""

import grp
import os
import pwd

from evidence import attempt, done, say

say(users=[one.pw_name for one in pwd.getpwall()], groups=[one.gr_name for one in grp.getgrall()])
for path in ("/etc/shadow", "/etc/gshadow", "/etc/passwd-", "/etc/subuid", "/var/run/nscd/socket", "/run/systemd/userdb"):
    attempt(path, os.stat, path)
say(login=os.environ.get("SUDO_USER"), groups_of_it=os.getgroups())
done()
