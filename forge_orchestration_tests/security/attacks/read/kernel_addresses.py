"""Collects kernel addresses, which an exploit needs first: from symbols, modules, memory maps and timers."""

from evidence import attempt, done, read, say


def addresses(path, column):
    """How many lines of a table tell a kernel address."""
    try:
        with open(path) as file:
            words = [line.split()[column].split("-")[0] for line in file if len(line.split()) > column]
    except OSError as error:
        return error.strerror
    return sum(1 for word in words if int(word, 16) != 0)


say(symbols=addresses("/proc/kallsyms", 0), modules=addresses("/proc/modules", 5), memory=addresses("/proc/iomem", 0))
for path in (
    "/proc/timer_list",
    "/proc/slabinfo",
    "/proc/pagetypeinfo",
    "/proc/self/stack",
    "/sys/kernel/notes",
    "/sys/kernel/debug",
):
    attempt(path, read, path)
done()
