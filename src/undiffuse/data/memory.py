"""Whether a set of pictures is kept in memory."""

import contextlib
import os
from pathlib import Path

from undiffuse.errors import unknown

CHOICES = ("auto", "always", "never")
SHARE = 3  # the set may take 1 / SHARE of the free memory: while it is divided, it is there twice
UNTOLD = 1 << 30  # bytes that may be taken where the system does not tell what is free
CGROUPS = {  # the limit of a container, what it uses, and what of that is a cache of files: version 2, version 1
    "memory.max": ("memory.current", "memory.stat", "inactive_file"),
    "memory/memory.limit_in_bytes": ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
}


def fits(choice: str, size: int) -> bool:
    """Whether a set of `size` bytes is kept in memory: "always", "never", or "auto", by the memory that is free now.

    Raises: InputError for another choice.
    """
    if choice not in CHOICES:
        raise unknown("memory", choice, CHOICES)
    if choice != "auto":
        return choice == "always"
    left = free()
    return size <= (UNTOLD if left is None else left // SHARE)


def free(proc: Path = Path("/proc/meminfo"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that are free for this process; None where the system does not tell (macOS, Windows).

    Linux counts what it would give back (MemAvailable), and the limit of a container is one too.
    """
    found = []
    try:
        lines = dict(line.split(":", 1) for line in proc.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, ValueError, KeyError):
        try:
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (AttributeError, ValueError, OSError):
            return None
    for limit, (used, of_it, cached) in CGROUPS.items():
        with contextlib.suppress(OSError, ValueError, KeyError):  # no such group, or "max"
            statistics = dict(line.split() for line in (groups / of_it).read_text().splitlines())
            in_use = int((groups / used).read_text()) - int(statistics[cached])
            found.append(int((groups / limit).read_text()) - in_use)
    return max(0, min(found))
