"""These tests install whole orchestrators, which takes minutes: only `make test-orchestrators` runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Servers
from tests.orchestrators.ground import Ground, open_ground
from tests.orchestrators.real import RealServer

HERE = Path(__file__).parent
INSTALLED_AND_DONE_SECONDS_MAX = 3_600


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """True leaves it out; None says nothing of it."""
    return True if not os.environ.get("AUTHWATCH_ORCHESTRATORS") and collection_path != HERE else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(INSTALLED_AND_DONE_SECONDS_MAX))


@pytest.fixture(scope="module")
def ground(
    server: RealServer, servers: Servers, database_of_the_file: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    """`server` is a fixture of the test file."""
    with open_ground(server, servers, database_of_the_file, tmp_path_factory.mktemp("ground")) as ground:
        yield ground
