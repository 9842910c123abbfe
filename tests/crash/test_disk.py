"""The small disk of the crash suite is one that can be full, and where there is none, it says why."""

from __future__ import annotations

import errno
import os

import pytest

from tests.crash.disk import open_disk


def test_a_full_disk_takes_nothing_until_it_is_emptied() -> None:
    with open_disk() as disk:
        if disk.why_not:
            pytest.skip(disk.why_not)
        disk.fill()
        with pytest.raises(OSError) as refused:
            (disk.folder / "more").write_bytes(os.urandom(100_000))
        assert refused.value.errno == errno.ENOSPC
        disk.empty()
        (disk.folder / "more").write_bytes(os.urandom(100_000))
        folder = disk.folder
    assert not folder.exists()


def test_an_ordinary_user_is_told_why_no_disk_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with open_disk() as disk:
        assert disk.why_not
        (disk.folder / "more").write_bytes(b"there is room")
