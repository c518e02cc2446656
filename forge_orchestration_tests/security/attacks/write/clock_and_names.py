"""Sets the host's clock and names; time-outs, tickets and logs of everybody hang on them."""

import struct
import time

from evidence import attempt, done, syscall

now = struct.pack("qq", int(time.time()), 0)  # as it is: were it allowed, nothing would break
attempt("settimeofday", syscall, "settimeofday", now, 0)
for name in ("CLOCK_REALTIME", "CLOCK_MONOTONIC", "CLOCK_TAI"):
    attempt(f"clock_settime {name}", syscall, "clock_settime", getattr(time, name), now)
attempt("clock_adjtime", syscall, "clock_adjtime", 0, struct.pack("I", 0x2).ljust(256, b"\0"))
attempt("adjtimex", syscall, 159, struct.pack("I", 0x2).ljust(256, b"\0"))
attempt("host name", syscall, "sethostname", b"harm", 4)
attempt("domain name", syscall, "setdomainname", b"harm", 4)
attempt("hardware clock", open, "/dev/rtc0")
done()
