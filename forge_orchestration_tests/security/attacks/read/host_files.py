"""Reads what every intruder reads first: password hashes, keys, histories, logs, mail, and files that only a namespace hides."""

from evidence import TARGETS, attempt, done, read

FIRST = (
    "/etc/shadow", "/etc/sudoers", "/etc/machine-id", "/etc/ssh/ssh_host_rsa_key", "/etc/hostname", "/etc/resolv.conf",
    "/etc/fstab", "/root/.ssh/id_rsa", "/root/.bash_history", "/root/.aws/credentials", "/home", "/var/log/syslog", "/var/mail",
    "/var/lib/postgresql", "/var/lib/docker", "/boot", "/sys/kernel", "/run", "/srv", "/mnt", "/media", "/opt", "/lost+found",
)  # fmt: skip

for path in (*FIRST, TARGETS["secret"], TARGETS["readable"], TARGETS["open_folder"]):
    attempt(path, read, path)
done()
