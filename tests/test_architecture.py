"""Promises about the code itself that no single behaviour shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from service import queue
from service.notify import NOTIFIERS
from service.orchestrators import ORCHESTRATORS
from service.provider_apis import PROVIDER_APIS
from service.providers import PROVIDERS
from service.rules.model import CONDITIONS
from service.rules.triggers import TRIGGERS
from service.runtime import Runtime
from service.sinks import SINKS
from workers.main import stories_of

ROOT = Path(__file__).resolve().parent.parent
REGISTRIES: dict[str, Mapping[str, object]] = {
    "service/providers/__init__.py": PROVIDERS,
    "service/provider_apis/__init__.py": PROVIDER_APIS,
    "service/sinks/__init__.py": SINKS,
    "service/orchestrators/__init__.py": ORCHESTRATORS,
    "service/notify/__init__.py": NOTIFIERS,
    "service/rules/triggers/__init__.py": TRIGGERS,
}


def test_every_job_a_receiver_names_has_its_story_in_the_worker() -> None:
    stories = stories_of(cast(Runtime, None))  # nothing runs, only the names are looked at
    assert set(queue.JOBS) <= set(stories)


def test_every_condition_of_a_rule_has_its_trigger() -> None:
    assert set(CONDITIONS) == set(TRIGGERS)


def test_the_readme_says_where_to_add_what_and_is_right() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = {
        row[1]: row[2]
        for row in re.finditer(r"^\| an? [^|]+\| `([^`]+)` \| one line of `([^`]+)`", readme, re.MULTILINE)
    }
    assert set(table.values()) == set(REGISTRIES)
    for written, registry in table.items():
        assert (ROOT / registry).is_file()
        assert (ROOT / Path(written).parent).is_dir(), f"the README names {written}"


def test_the_readme_names_every_registered_plug_in() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for registry in REGISTRIES.values():
        for name in registry:
            assert f"`{name}`" in readme


def test_no_python_file_of_ours_is_larger_than_a_person_reads() -> None:
    large = [
        f"{path.relative_to(ROOT)}: {count}"
        for folder in ("service", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 420
    ]
    assert large == []


def test_the_stack_that_keeps_secrets_out_of_errors_is_in_place() -> None:
    session = (ROOT / "service/store/session.py").read_text(encoding="utf-8")
    assert "hide_parameters=True" in session


def test_no_two_advisory_locks_have_one_number() -> None:
    """Two that share one would wait for each other without any reason, or for ever."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "service").rglob("*.py")):
        for number in re.findall(r"^\w*LOCK\w* = (7_305_201_\d+|730_\d+)\b", path.read_text(), re.MULTILINE):
            found.setdefault(number, []).append(path.name)
    assert len(found) > 5
    assert {number: names for number, names in found.items() if len(names) > 1} == {}
