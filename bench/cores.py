"""One core for what is measured, and the other for what stands around it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def pair() -> tuple[int, int] | None:
    """(the core for what is measured, the one for all else); None where there is only one, or none can be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[1], allowed[0]) if len(allowed) > 1 else None


def keep(pid: int, core: int | None) -> None:
    """All threads that the process has by now."""
    if core is not None:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), {core})


@contextmanager
def kept(core: int | None) -> Iterator[None]:
    """This process meanwhile, and what it starts."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    keep(os.getpid(), core)
    try:
        yield
    finally:
        for thread in os.listdir(f"/proc/{os.getpid()}/task"):
            os.sched_setaffinity(int(thread), before)
