"""One receiver for all that is thrown at it."""

from __future__ import annotations

from tests.fuzz.test_front_door import door  # noqa: F401 - a fixture of both files
