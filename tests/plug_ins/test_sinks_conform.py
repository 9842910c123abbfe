"""Every sink of the registry keeps the same promises: what each answer means, what it puts aside, no secret told.

A new kind gives its cases (tests/plug_ins/sink_cases/) and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import import_module
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service import outbound
from service.errors import DeliveryFailed
from service.event import Event
from service.outbound import RETRY_AFTER_SECONDS_MAX
from service.sinks import SINKS
from service.sinks.base import REFUSED_IN_A_ROW_MAX, Sent, Sink
from service.sinks.formats import FORMATS
from tests.fakes.front import Front, standing
from tests.plug_ins.sink_cases.base import STATUSES_MIN, Cases, Verdict
from tests.plug_ins.sink_cases.items import WORD, an_event, events, ids, sized

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
ITEM_BYTES = 1_500_000  # the largest that redaction lets through is a little more
# A kind without its file fails here, by its name.
CASES: dict[str, Cases] = {kind: import_module(f"tests.plug_ins.sink_cases.{kind}").CASES for kind in sorted(SINKS)}
STATUSES = [(kind, status) for kind, cases in CASES.items() for status in sorted(cases.statuses)]
TROUBLES = [(kind, name) for kind, cases in CASES.items() for name in cases.troubles]


@dataclass
class Ground:
    """One kind, its fake, and the client that its calls go through."""

    kind: str
    cases: Cases
    fake: Any
    url: str
    http: httpx.AsyncClient

    def open(self, **changes: Any) -> Sink:
        return self.open_at(self.url, **changes)

    def open_at(self, base: str, /, **changes: Any) -> Sink:
        kind = SINKS[self.kind]
        return kind.open(kind.Config.model_validate(self.cases.section(base) | {"name": "siem"} | changes), self.http)

    def impatient(self) -> Sink:
        return self.open(timeout_seconds=self.cases.timeout_seconds)

    @property
    def taken(self) -> list[str]:
        return self.cases.taken(self.fake)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@asynccontextmanager
async def ground_of(kind: str, front: Front) -> AsyncIterator[Ground]:
    cases = CASES[kind]
    fake = cases.fake()
    async with outbound.open_client() as http:
        if cases.serve is not None:
            async with cases.serve(fake) as url:
                yield Ground(kind, cases, fake, url, http)
        else:
            front.app = fake.app
            yield Ground(kind, cases, fake, front.url, http)


@pytest.fixture(params=sorted(SINKS))
async def ground(request: pytest.FixtureRequest, front: Front) -> AsyncIterator[Ground]:
    async with ground_of(request.param, front) as made:
        yield made


async def failure_of(sink: Sink, items: list[Event] | None = None) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        await sink.send(events(2) if items is None else items)
    return caught.value


async def outcome_of(sink: Sink) -> Sent | DeliveryFailed:
    try:
        return await sink.send(events(2))
    except DeliveryFailed as failure:
        return failure


async def verdict_of(sink: Sink) -> tuple[Verdict, DeliveryFailed | None]:
    outcome = await outcome_of(sink)
    if isinstance(outcome, DeliveryFailed):
        assert str(outcome), "it says what is wrong"
        assert not (outcome.permanent and outcome.ambiguous), "what may have arrived is not done with"
        return ("refused" if outcome.permanent else "retry"), outcome
    if outcome == Sent(2):
        return "done", None
    assert (outcome.accepted, [poison.index for poison in outcome.poison]) == (0, [0, 1])
    return "aside", None


def once_or_twice(cases: Cases, items: list[Event], taken: list[str]) -> None:
    """What was sent twice: each is there, in order, and a second time only where the protocol has no key."""
    assert list(dict.fromkeys(taken)) == ids(items)
    assert len(taken) == len(items) * (1 if cases.drops_repeats else 2)


# What the other side gets


async def test_a_sink_knows_its_name_and_kind(ground: Ground) -> None:
    sink = ground.open()
    assert (sink.name, sink.kind) == ("siem", ground.kind)
    assert 1 <= sink.batch_items_max <= ground.cases.request_items_max * 20


async def test_a_batch_arrives_once_each_in_order(ground: Ground) -> None:
    assert await ground.open().send(events(7)) == Sent(7)
    assert ground.taken == ids(events(7))


async def test_an_empty_batch_sends_nothing(ground: Ground) -> None:
    assert await ground.open().send([]) == Sent(0)
    assert ground.cases.said(ground.fake) == ""


async def test_every_format_carries_the_id_that_repeats_are_told_by(ground: Ground) -> None:
    for number, name in enumerate(FORMATS, 1):
        item = an_event(number)
        assert await ground.open(format=name).send([item]) == Sent(1)
        assert item.id in ground.cases.said(ground.fake)


async def test_a_request_is_bounded_in_items(ground: Ground) -> None:
    sink = ground.open()
    await sink.send(events(sink.batch_items_max))
    requests = ground.cases.requests(ground.fake)
    assert sum(count for count, _ in requests) == sink.batch_items_max
    assert max(count for count, _ in requests) <= ground.cases.request_items_max
    assert ground.taken == ids(events(sink.batch_items_max))


async def test_a_request_is_bounded_in_bytes(ground: Ground) -> None:
    most = ground.cases.request_bytes_max
    size = min(most // 3, ITEM_BYTES)
    items = [sized(number, size) for number in range(1, most // size + 3)]
    assert await ground.open().send(items) == Sent(len(items))
    requests = ground.cases.requests(ground.fake)
    assert len(requests) > 1
    assert max(count for _, count in requests) <= most
    assert ground.taken == ids(items)


async def test_an_item_too_large_for_it_is_put_aside_and_not_sent(ground: Ground) -> None:
    most = ground.cases.item_bytes_max
    if most is None:
        assert ground.cases.request_bytes_max >= ITEM_BYTES, "nothing larger than that comes"
        return
    items = [an_event(1), sized(2, most + 100_000), an_event(3)]
    sent = await ground.open().send(items)
    assert (sent.accepted, [(poison.index, poison.ours) for poison in sent.poison]) == (2, [(1, True)])
    assert ground.taken == ids([items[0], items[2]])


async def test_a_number_that_json_does_not_have_holds_up_no_other(ground: Ground) -> None:
    items = [an_event(1), an_event(2, details={"note": float("nan")}), an_event(3)]
    sent = await ground.open().send(items)
    assert sent.accepted + len(sent.poison) == 3
    assert {items[0].id, items[2].id} <= set(ground.taken)


async def test_no_token_leaves_however_it_got_into_the_event(ground: Ground) -> None:
    leaky = an_event(1, details={"access_token": "LEAK-1", "why": "Bearer LEAK-2", "list": [{"password": "LEAK-3"}]})
    leaky = replace(leaky, identifier="https://x.example/?token=LEAK-4", status="client_secret=LEAK-5")
    for name in FORMATS:
        await ground.open(format=name).send([leaky])
    said = ground.cases.said(ground.fake)
    assert leaky.id in said
    assert "LEAK-" not in said


async def test_check_says_something_and_leaves_nothing(ground: Ground) -> None:
    said = await ground.open().check()
    assert said
    assert not any(secret in said for secret in ground.cases.secrets)
    assert ground.taken == []


# What each answer means


@pytest.mark.parametrize("kind", [kind for kind, cases in CASES.items() if cases.statuses])
def test_every_status_that_matters_is_in_the_table(kind: str) -> None:
    assert CASES[kind].statuses.keys() >= STATUSES_MIN


@pytest.mark.parametrize("kind", sorted(SINKS))
def test_a_protocol_without_statuses_names_its_own_troubles(kind: str) -> None:
    assert CASES[kind].statuses or len(CASES[kind].troubles) >= 3


@pytest.mark.parametrize(("kind", "status"), STATUSES)
async def test_a_status_means_what_the_table_says(kind: str, status: int, front: Front) -> None:
    async with ground_of(kind, front) as ground:
        elsewhere = {"location": "https://elsewhere.example/"} if 300 <= status < 400 else {}
        ground.cases.answers(ground.fake, status, elsewhere, "no")
        verdict, failure = await verdict_of(ground.open())
        assert verdict == ground.cases.statuses[status]
        if failure is not None:
            assert failure.status == status
            assert failure.code == ("redirected" if status < 400 else f"http_{status}")
        if verdict != "done":
            assert ground.taken == []


@pytest.mark.parametrize(("kind", "name"), TROUBLES)
async def test_a_trouble_means_what_the_table_says(kind: str, name: str, front: Front) -> None:
    async with ground_of(kind, front) as ground:
        trouble = ground.cases.troubles[name]
        trouble.begin(ground.fake)
        verdict, failure = await verdict_of(ground.impatient())
        assert verdict == trouble.verdict
        if failure is not None:
            assert trouble.code in (None, failure.code)
            assert trouble.says in str(failure)


async def test_retry_after_is_handed_on(ground: Ground) -> None:
    if not (ground.cases.statuses and ground.cases.retry_after):
        return
    sink = ground.open()
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    cases: dict[str, tuple[float, float] | None] = {
        "17": (17, 17),
        at: (60, 90),
        "999999": (RETRY_AFTER_SECONDS_MAX, RETRY_AFTER_SECONDS_MAX),
        "soon": None,
        "-5": None,
    }
    for status in (429, 503):
        for said, wanted in cases.items():
            ground.cases.answers(ground.fake, status, {"retry-after": said}, "")
            waits = (await failure_of(sink)).retry_after_seconds
            assert (waits is None) if wanted is None else (waits is not None and wanted[0] <= waits <= wanted[1])


async def test_nobody_there_took_nothing(ground: Ground) -> None:
    failure = await failure_of(ground.open_at(NOWHERE))
    assert (failure.code, failure.permanent, failure.ambiguous) == ("connect_failed", False, False)


async def test_a_sink_that_was_down_takes_the_same_batch_later(ground: Ground) -> None:
    if ground.cases.statuses:
        sink = ground.open()
        ground.cases.answers(ground.fake, 503, {}, "")
        await failure_of(sink, events(3))
        ground.cases.answers(ground.fake, None, {}, "")
        assert await sink.send(events(3)) == Sent(3)
        assert ground.taken == ids(events(3))


# What may have arrived is sent again


async def test_no_answer_in_time_may_have_arrived_and_is_sent_again(ground: Ground) -> None:
    if ground.cases.slow is None:
        return
    sink = ground.impatient()
    ground.cases.slow(ground.fake, ground.cases.timeout_seconds + 0.3)
    failure = await failure_of(sink, events(3))
    assert (failure.code, failure.permanent, failure.ambiguous) == ("timeout", False, True)
    assert await ground.open().send(events(3)) == Sent(3)
    once_or_twice(ground.cases, events(3), ground.taken)


async def test_an_answer_that_breaks_off_may_have_arrived_and_is_sent_again(ground: Ground) -> None:
    if ground.cases.break_off is None:
        return
    sink = ground.open()
    ground.cases.break_off(ground.fake)
    failure = await failure_of(sink, events(3))
    assert (failure.code, failure.permanent, failure.ambiguous) == ("disconnected", False, True)
    assert await sink.send(events(3)) == Sent(3)
    once_or_twice(ground.cases, events(3), ground.taken)


async def test_the_same_batch_twice_is_held_as_often_as_the_protocol_says(ground: Ground) -> None:
    sink = ground.open()
    for _ in range(2):
        assert await sink.send(events(5)) == Sent(5)
    once_or_twice(ground.cases, events(5), ground.taken)


# What is put aside


@pytest.mark.parametrize("bad", [(0,), (9,), (2, 5), (0, 1, 9)])
async def test_a_bad_item_is_put_aside_alone_and_its_neighbours_go_through(
    ground: Ground, bad: tuple[int, ...]
) -> None:
    if ground.cases.refuse is None:
        return
    ground.cases.refuse(ground.fake, WORD)
    items = [replace(item, identifier=WORD) if n in bad else item for n, item in enumerate(events(10))]
    sent = await ground.open().send(items)
    assert sent.accepted == 10 - len(bad)
    assert [(poison.index, poison.ours) for poison in sent.poison] == [(index, False) for index in bad]
    assert all(poison.reason for poison in sent.poison)
    assert list(dict.fromkeys(ground.taken)) == [item.id for n, item in enumerate(items) if n not in bad]


async def test_when_every_item_is_refused_none_is_put_aside(ground: Ground) -> None:
    if ground.cases.refuse is None:
        return
    ground.cases.refuse(ground.fake, WORD)
    items = [replace(item, identifier=WORD) for item in events(REFUSED_IN_A_ROW_MAX * 2)]
    failure = await failure_of(ground.open(), items)
    assert (failure.code, failure.permanent) == ("all_refused", True)
    assert ground.taken == []


# What the section says


async def test_a_section_that_does_not_work_says_how_to_mend_it(ground: Ground) -> None:
    for change, hint in ground.cases.misconfigured:
        sink = ground.open(**{key: value.format(ground.url) for key, value in change.items()})
        with pytest.raises(DeliveryFailed) as caught:
            await sink.check()
        failure = await failure_of(sink)
        for said in (str(caught.value), str(failure)):
            assert hint in said
            assert not any(secret in said for secret in ground.cases.secrets)
        assert failure.permanent


@pytest.mark.parametrize("kind", sorted(SINKS))
def test_a_section_that_cannot_be_right_is_refused_without_quoting_it(kind: str) -> None:
    cases, config = CASES[kind], SINKS[kind].Config
    section = cases.section("https://siem.example")
    common: tuple[dict[str, Any], ...] = ({"ur1": cases.secrets[0] if cases.secrets else "x"}, {"format": "cef"})
    for wrong in (*common, {"match": {"knd": "audit"}}, {"match": []}, {"timeout_seconds": 0}, *cases.wrong):
        with pytest.raises(ValidationError) as caught:
            config.model_validate({**section, "name": "siem", **wrong})
        (error,) = caught.value.errors(include_input=False, include_url=False)
        assert error["loc"][:1] == tuple(wrong)
        assert not any(secret in str(caught.value) + error["msg"] for secret in cases.secrets)


# Secrets stay with us


async def test_neither_sink_nor_config_prints_its_secret(ground: Ground) -> None:
    config = SINKS[ground.kind].Config.model_validate(ground.cases.section(ground.url) | {"name": "siem"})
    sink = ground.open()
    said = f"{sink!r} {sink} {config!r} {config} {config.model_dump_json()}"
    assert not any(secret in said for secret in ground.cases.secrets)


@pytest.mark.parametrize("trouble", [301, 400, 401, 403, 404, 413, 429, 500, "slow", "broken", "away"])
async def test_a_secret_is_in_no_error_and_no_log(
    ground: Ground, trouble: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    """The other side may say our own words back to us."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # as observe.configure_logging has it: it logs whole URLs
    secrets, sink = ground.cases.secrets, ground.impatient()
    echo = " ".join(("no:", *secrets))
    match trouble:
        case int():
            ground.cases.answers(ground.fake, trouble, {"location": "https://elsewhere.example/", "x-said": "1"}, echo)
        case "slow" if ground.cases.slow is not None:
            ground.cases.slow(ground.fake, ground.cases.timeout_seconds + 0.3)
        case "broken" if ground.cases.break_off is not None:
            ground.cases.break_off(ground.fake)
        case _:
            sink = ground.open_at(NOWHERE)
    outcome = await outcome_of(sink)
    if isinstance(outcome, DeliveryFailed):
        assert outcome.__cause__ is None
        said = f"{outcome} {outcome!r} {vars(outcome)}"
    else:
        said = repr(outcome)
    with suppress(DeliveryFailed):
        said += await sink.check()
    said += "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "uvicorn"))
    )
    assert not [secret for secret in secrets if secret in said]
