"""Rewrites what the kernel keeps about its own process: its users, its login, its label, its place when memory runs out."""

from evidence import attempt, done, write

for name, value in {
    "uid_map": b"0 0 4294967295", "gid_map": b"0 0 4294967295", "setgroups": b"allow", "loginuid": b"0", "oom_score_adj": b"-1000",
    "oom_adj": b"-17", "attr/current": b"unconfined", "attr/exec": b"unconfined", "projid_map": b"0 0 4294967295",
}.items():  # fmt: skip
    attempt(name, write, f"/proc/self/{name}", value)
done()
