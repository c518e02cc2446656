"""Asks the kernel to tell of pressure, thousands of times: each such trigger takes a while to remove, which delays the end."""

import os

from evidence import attempt, done

for what in ("cpu", "io", "memory", "irq"):
    attempt(f"open {what}", os.open, f"/proc/pressure/{what}", os.O_RDWR)
    attempt(f"read {what}", os.open, f"/proc/pressure/{what}", os.O_RDONLY)
done()
