"""Every notifier of the registry keeps the same promises: what each answer means, one effect for one key, no secret told.

A new kind gives its cases (tests/plug_ins/notifier_cases/) and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import import_module
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service import outbound
from service.errors import DeliveryFailed
from service.notify import NOTIFIERS
from service.notify.base import MessageRef, Notifier
from service.notify.refusals import is_of_the_destination
from tests.fakes.front import Front, standing
from tests.plug_ins.notifier_cases.base import STATUSES_MIN, Cases, Verdict
from tests.plug_ins.notifier_cases.views import ACKNOWLEDGED, RESOLVED, VIEW

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
# A kind without its file fails here, by its name.
CASES: dict[str, Cases] = {
    kind: import_module(f"tests.plug_ins.notifier_cases.{kind}").CASES for kind in sorted(NOTIFIERS)
}
WIRED = [kind for kind, cases in CASES.items() if cases.fake is not None]


@dataclass
class Ground:
    """One kind, its fake, and the client that its calls go through."""

    kind: str
    cases: Cases
    fake: Any
    url: str
    http: httpx.AsyncClient

    def from_registry(self) -> Notifier:
        kind = NOTIFIERS[self.kind]
        return kind.open(kind.Config.model_validate(self.cases.section(self.url)), self.http)

    def impatient(self, url: str | None = None) -> Notifier:
        assert self.cases.open is not None
        return self.cases.open(url or self.url, self.http, self.cases.timeout_seconds)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


async def ground_of(kind: str, front: Front) -> AsyncIterator[Ground]:
    cases = CASES[kind]
    fake = cases.fake() if cases.fake is not None else None
    if fake is not None:
        front.app = fake.app
    async with outbound.open_client() as http:
        yield Ground(kind, cases, fake, front.url, http)


@pytest.fixture(params=sorted(NOTIFIERS))
async def ground(request: pytest.FixtureRequest, front: Front) -> AsyncIterator[Ground]:
    async for made in ground_of(request.param, front):
        yield made


@pytest.fixture(params=WIRED)
async def wired(request: pytest.FixtureRequest, front: Front) -> AsyncIterator[Ground]:
    async for made in ground_of(request.param, front):
        yield made


async def failure_of(notifier: Notifier, ref: MessageRef | None = None) -> DeliveryFailed:
    tried = notifier.update(RESOLVED, ref) if ref else notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    with pytest.raises(DeliveryFailed) as caught:
        await tried
    return caught.value


def verdict_of(failure: DeliveryFailed) -> Verdict:
    if failure.permanent:
        assert not failure.ambiguous, "what may have arrived is not done with"
        return "refused" if is_of_the_destination(failure.code) else "permanent"
    return "ambiguous" if failure.ambiguous else "retry"


# What a reader gets


async def test_a_notifier_knows_its_name_and_kind(ground: Ground) -> None:
    notifier = ground.from_registry()
    assert (notifier.name, notifier.kind) == ("on-call", ground.kind)
    assert notifier.idempotent in (True, False)
    assert notifier.one_incident in (True, False)


async def test_a_post_reaches_the_reader_with_the_facts(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    ref = await ground.from_registry().post(VIEW, delivery_id="d1", possible_repeat=False)
    said = ground.cases.seen(ground.fake, capsys.readouterr().err)
    assert ref.channel
    assert ref.ts
    for fact in (*ground.cases.facts, ground.cases.opened_as):
        assert fact in said
    assert "possible repeat" not in said


async def test_an_update_keeps_the_reference_and_tells_the_new_state(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    notifier = ground.from_registry()
    ref = await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    after = await notifier.update(RESOLVED, ref)
    assert (after.channel, after.ts) == (ref.channel, ref.ts)
    assert ground.cases.resolved_as in ground.cases.seen(ground.fake, capsys.readouterr().err)


async def test_an_edit_twice_is_an_edit_once(wired: Ground) -> None:
    notifier = wired.from_registry()
    ref = await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    for view in (VIEW, ACKNOWLEDGED, ACKNOWLEDGED, RESOLVED):
        ref = await notifier.update(view, ref)
    said = wired.cases.seen(wired.fake, "")
    assert await notifier.update(RESOLVED, ref) == ref
    assert wired.cases.seen(wired.fake, "") == said


async def test_a_delivery_never_made_is_not_found(ground: Ground) -> None:
    assert await ground.from_registry().find("never") is None


async def test_check_says_something_and_tells_nobody(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    said = await ground.from_registry().check()
    assert said
    assert not any(secret in said for secret in ground.cases.secrets)
    assert ground.cases.effects(ground.fake) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", sorted(NOTIFIERS))
def test_an_unknown_key_in_the_config_is_refused_and_no_secret_shown(kind: str) -> None:
    with pytest.raises(ValidationError, match="chanel") as caught:
        NOTIFIERS[kind].Config.model_validate({**CASES[kind].section("http://127.0.0.1:1"), "chanel": "C1"})
    config = NOTIFIERS[kind].Config.model_validate(CASES[kind].section("http://127.0.0.1:1"))
    assert not any(secret in f"{caught.value}{config!r}{config}" for secret in CASES[kind].secrets)


# What each answer means


@pytest.mark.parametrize("kind", WIRED)
def test_every_status_that_matters_is_in_the_table(kind: str) -> None:
    assert CASES[kind].statuses.keys() >= STATUSES_MIN


@pytest.mark.parametrize(
    ("kind", "status"), [(kind, status) for kind in WIRED for status in sorted(CASES[kind].statuses)]
)
async def test_a_status_means_what_the_table_says(kind: str, status: int, front: Front) -> None:
    async for ground in ground_of(kind, front):
        wanted = ground.cases.statuses[status]
        ground.cases.answers(ground.fake, status, {})
        if wanted == "done":
            await ground.impatient().post(VIEW, delivery_id="d1", possible_repeat=False)
            return
        failure = await failure_of(ground.impatient())
        assert verdict_of(failure) == wanted
        assert str(failure), "it says what is wrong"
        assert ground.cases.effects(ground.fake) == 0


async def test_a_refused_edit_means_the_same_as_a_refused_post(wired: Ground) -> None:
    notifier = wired.impatient()
    ref = await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    wired.cases.answers(wired.fake, 401, {})
    assert verdict_of(await failure_of(notifier, ref)) == "refused"
    wired.cases.answers(wired.fake, 429, {})
    assert verdict_of(await failure_of(notifier, ref)) == "retry"


async def test_retry_after_is_handed_on_in_seconds(wired: Ground) -> None:
    wired.cases.answers(wired.fake, 429, {"Retry-After": "17"})
    assert (await failure_of(wired.impatient())).retry_after_seconds == 17


async def test_retry_after_is_handed_on_as_a_date(wired: Ground) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    wired.cases.answers(wired.fake, 429, {"Retry-After": at})
    waits = (await failure_of(wired.impatient())).retry_after_seconds
    assert waits is not None
    if wired.cases.retry_after_dates:
        assert 60 < waits <= 90
    else:
        assert waits > 0, "unreadable there, and waited for all the same"


@pytest.mark.parametrize("said", ["soon", "-5", "nan", "1e9999", "99999999999999999999"])
async def test_a_retry_after_that_cannot_be_is_no_harm(wired: Ground, said: str) -> None:
    wired.cases.answers(wired.fake, 429, {"Retry-After": said})
    failure = await failure_of(wired.impatient())
    assert verdict_of(failure) == "retry"
    assert failure.retry_after_seconds is None or 0 <= failure.retry_after_seconds <= 3600


async def test_nobody_there_took_nothing(wired: Ground) -> None:
    failure = await failure_of(wired.impatient(NOWHERE))
    assert (failure.code, verdict_of(failure)) == ("connect_failed", "retry")


async def test_no_answer_in_time_may_have_arrived(wired: Ground) -> None:
    wired.cases.slow(wired.fake, wired.cases.timeout_seconds + 0.5)
    failure = await failure_of(wired.impatient())
    assert (failure.code, verdict_of(failure)) == ("timeout", "ambiguous")
    assert wired.cases.effects(wired.fake) == 1


async def test_an_answer_that_breaks_off_may_have_arrived(wired: Ground) -> None:
    wired.cases.break_off(wired.fake)
    failure = await failure_of(wired.impatient())
    assert (failure.code, verdict_of(failure)) == ("disconnected", "ambiguous")
    assert wired.cases.effects(wired.fake) == 1


# The same key twice


async def test_what_may_have_arrived_is_told_once_all_the_same(
    wired: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    """One effect for one key; else it is found where it is, so that nothing is posted again."""
    notifier = wired.impatient()
    wired.cases.break_off(wired.fake)
    await failure_of(notifier)
    if notifier.idempotent:
        ref = await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
        assert await notifier.post(VIEW, delivery_id="d1", possible_repeat=False) == ref
    else:
        assert await notifier.find("d1", since=datetime.now(UTC) - timedelta(minutes=1)) is not None
    assert wired.cases.effects(wired.fake) == 1


async def test_what_may_be_a_second_one_says_so(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    notifier = ground.from_registry()
    await notifier.post(VIEW, delivery_id="d1", possible_repeat=True)
    said = ground.cases.seen(ground.fake, capsys.readouterr().err)
    assert ("(possible repeat)" in said) is not notifier.idempotent, "where the key counts there is no second one"


async def test_another_message_about_the_same_alert_is_another_or_the_same_incident(wired: Ground) -> None:
    notifier = wired.from_registry()
    await notifier.post(VIEW, delivery_id="d1", possible_repeat=False)
    await notifier.post(VIEW, delivery_id="d2", possible_repeat=False)
    assert wired.cases.effects(wired.fake) == (1 if notifier.one_incident else 2)


# Secrets stay with us


@pytest.mark.parametrize("trouble", [401, 403, 404, 410, 429, 500, "redirected", "slow", "broken", "away"])
async def test_a_secret_is_in_no_error_and_no_log(
    wired: Ground, trouble: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    """The other side may say our own words back to us."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # as observe.configure_logging has it: it logs whole URLs
    secrets, notifier = wired.cases.secrets, wired.impatient()
    echo = " ".join(("no:", *secrets))
    match trouble:
        case int():
            wired.cases.answers(wired.fake, trouble, {}, echo)
        case "redirected":
            wired.cases.answers(wired.fake, 308, {"X-Said": echo}, echo)
        case "slow":
            wired.cases.slow(wired.fake, wired.cases.timeout_seconds + 0.5)
        case "broken":
            wired.cases.break_off(wired.fake)
        case _:
            notifier = wired.impatient(NOWHERE)
    failure = await failure_of(notifier)
    with suppress(DeliveryFailed):
        await notifier.check()
    assert failure.__cause__ is None
    said = f"{failure} {failure!r} {vars(failure)} {notifier!r}"
    said += "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "uvicorn"))
    )
    assert not [secret for secret in secrets if secret in said]
