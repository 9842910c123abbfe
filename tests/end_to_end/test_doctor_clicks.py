"""What the doctor says of clicks in Slack: each thing that keeps them from working, with its mend, and nothing secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.doctor_clicks import of_clicks
from service.finding import Finding
from service.runtime import Runtime, open_runtime
from tests.end_to_end.slack_desk import Desk, open_desk
from tests.fakes.slack import TOKEN
from tests.fakes.slack_clicks import DIANA, GROUP, SIGNING_SECRET


async def examine(runtime: Runtime, url: str | None) -> dict[str, Finding]:
    found = await of_clicks(runtime, url)
    assert not any(secret in finding.said for finding in found for secret in (SIGNING_SECRET, TOKEN))
    by_what = {finding.what: finding for finding in found}
    assert len(by_what) == len(found)
    return by_what


async def test_where_all_is_well_it_is_said(database_url: str, tmp_path: Path) -> None:
    url = "https://authwatch.example.com"
    async with open_desk(database_url, tmp_path, SLACK_MAY_ACT=f"U0CLARK001,{GROUP}", AUTHWATCH_PUBLIC_URL=url) as desk:
        found = await examine(desk.runtime, str(desk.client.base_url))
        assert set(found) == {"clicks of slack", "click URL of slack", "click probe of slack"}
        assert all(finding.ok for finding in found.values())
        assert found["clicks of slack"].said == "2 people may click"
        assert f"{url}/slack/interactions" in found["click URL of slack"].said
        assert set(await examine(desk.runtime, None)) == {"clicks of slack", "click URL of slack"}
        assert desk.slack.tried == 0


@pytest.mark.parametrize(
    ("may_act", "said"),
    [
        (None, "nobody is permitted, so every click is refused; set SLACK_MAY_ACT"),
        ("T0ACME0001", "nobody is permitted"),
        ("S0UNKNOWN1", "cannot be known: Slack: no_such_subteam"),
        (f"{DIANA},S0EMPTY001", "the user group S0EMPTY001 has no members"),
    ],
)
async def test_who_may_not_be_known_is_named(database_url: str, tmp_path: Path, may_act: str | None, said: str) -> None:
    async with open_desk(database_url, tmp_path, SLACK_MAY_ACT=may_act) as desk:
        desk.slack.groups["S0EMPTY001"] = []
        found = (await examine(desk.runtime, None))["clicks of slack"]
    assert (found.ok, said in found.said) == (False, True), found


async def test_a_missing_scope_is_named_with_its_mend(database_url: str, tmp_path: Path) -> None:
    async with open_desk(database_url, tmp_path, SLACK_MAY_ACT=GROUP) as desk:
        desk.slack.scopes.discard("usergroups:read")
        found = (await examine(desk.runtime, None))["clicks of slack"]
    assert (found.ok, "give the Slack app the scope usergroups:read" in found.said) == (False, True)


async def test_without_a_signing_secret_or_an_address_it_hints(database_url: str, tmp_path: Path) -> None:
    async with open_desk(database_url, tmp_path, SLACK_SIGNING_SECRET=None) as desk:
        [found] = (await examine(desk.runtime, str(desk.client.base_url))).values()
        assert (found.ok, "set SLACK_SIGNING_SECRET" in found.said) == (None, True)
    async with open_desk(database_url, tmp_path) as desk:
        found = (await examine(desk.runtime, None))["click URL of slack"]
        assert (found.ok, "over https: set AUTHWATCH_PUBLIC_URL" in found.said) == (None, True)


async def test_a_service_with_another_secret_or_none_is_named(database_url: str, tmp_path: Path) -> None:
    async with open_desk(database_url, tmp_path) as desk:
        assert await probe(desk, "0123456789abcdef0123456789abcdef") == "401"
    async with open_desk(database_url, tmp_path, SLACK_SIGNING_SECRET=None) as desk:
        assert await probe(desk, SIGNING_SECRET) == "404"


async def probe(desk: Desk, secret: str) -> str:
    """How what the doctor says begins, when it knows this secret."""
    settings = desk.runtime.settings
    section = settings.notifiers["slack"] | {"signing_secret": secret, "may_act": {"users": [DIANA]}}
    own = settings.model_copy(update={"notifiers": {"slack": section}})
    async with open_runtime(own, connections_max=1) as runtime:
        found = (await examine(runtime, str(desk.client.base_url)))["click probe of slack"]
    assert found.ok is False
    return found.said.partition(":")[0]


async def test_a_service_that_is_not_there_is_named(database_url: str, tmp_path: Path) -> None:
    async with open_desk(database_url, tmp_path) as desk:
        found = (await examine(desk.runtime, "http://127.0.0.1:9"))["click probe of slack"]
    assert (found.ok, "is `authwatch serve` running there?" in found.said) == (False, True)
