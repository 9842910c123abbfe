"""A small disk for Postgres that can be filled: a tmpfs of its own, which only root may mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SIZE_MEGABYTES = 640
STEP_BYTES = 64 * 1024
FILLS_MAX = 200


@dataclass(frozen=True, slots=True)
class Disk:
    """`folder` is the servers' data dir. `why_not`: why it cannot be filled, "" when it can."""

    folder: Path
    why_not: str = ""

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self) -> None:
        """Takes every byte that is left; what Postgres frees meanwhile is not taken."""
        with self._ballast.open("ab") as file:
            for _ in range(FILLS_MAX):
                state = os.statvfs(self.folder)
                free = state.f_bavail * state.f_frsize
                if free <= 0:
                    return
                taken = os.fstat(file.fileno()).st_size
                try:
                    os.posix_fallocate(file.fileno(), taken, free)
                except OSError:  # less is left by now
                    try:
                        os.posix_fallocate(file.fileno(), taken, min(free, STEP_BYTES))
                    except OSError:
                        return

    def empty(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def open_disk() -> Iterator[Disk]:
    """An empty folder, on a file system of its own where this user may mount one."""
    folder = Path(tempfile.mkdtemp(prefix="authwatch-crash-"))
    folder.chmod(0o755)  # the servers run as another user when we are root
    why_not = mount(folder)
    try:
        yield Disk(folder, why_not)
    finally:
        if not why_not:
            subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def mount(folder: Path) -> str:
    """Why it was not mounted, "" when it was."""
    if sys.platform != "linux":
        return "a small file system is mounted on Linux only"
    if os.geteuid() != 0:
        return "only root may mount a small file system"
    options = f"size={SIZE_MEGABYTES}m,mode=0755"
    ran = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    return f"mount: {ran.stderr.strip()}" if ran.returncode else ""
