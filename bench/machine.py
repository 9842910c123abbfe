"""What the figures were measured on, in words a reader can compare."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from statistics import median

from bench.house import House, one

CORES = 2


def keep_to_two_cores() -> str:
    """This process and all it starts; what was done."""
    if not hasattr(os, "sched_setaffinity"):
        return "not held to two cores: this system cannot"
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > CORES:
        os.sched_setaffinity(0, allowed[:CORES])
        return f"held to {CORES} of {len(allowed)} cores, all parts, servers and generators together"
    return f"{len(allowed)} cores, shared by all parts, servers and generators"


def describe(house: House, cores: str, commits_ms: list[float]) -> list[tuple[str, str]]:
    version = str(one(house.postgres.url, "SHOW server_version"))
    commit = f"{median(commits_ms):.2f} ms (median of {len(commits_ms)} rounds' medians)" if commits_ms else "-"
    return [
        ("CPU", cpu_model()),
        ("cores", cores),
        ("memory", memory()),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("Postgres", f"{version}, embedded, durability at its defaults"),
        ("file system of the database", file_system(house.folder)),
        ("lone one-row COMMIT on this disk", commit),
    ]


def file_system(folder: Path) -> str:
    """Its type, by the longest mount point above the folder; what is in memory makes every durable figure worthless."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(point, kind) for point, kind in mounts if folder.is_relative_to(point)]
    return max(above, key=lambda mount: len(mount[0]), default=("", "unknown"))[1]


def cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1024**3:.1f} GiB"
