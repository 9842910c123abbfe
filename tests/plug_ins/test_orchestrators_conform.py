"""Every orchestrator of the registry keeps the same promises: what each answer means, what a resume puts back, one effect
however often it is asked, no secret told.

A new kind gives its cases (tests/plug_ins/orchestrator_cases/) and nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service import outbound
from service.errors import DeliveryFailed
from service.orchestrators import ORCHESTRATORS
from service.orchestrators.base import Answer, Orchestrator, Stops
from service.orchestrators.webhook import STATE_CHARS_MAX
from service.store.asks import GONE, LEFT, OF_CREDENTIALS
from tests.fakes.front import Front, standing
from tests.plug_ins.orchestrator_cases.base import STATUSES_MIN, Cases, Verdict

KEY = "0199aaaa-0000-7000-8000-00000000000"
# A kind without its file fails here, by its name.
CASES: dict[str, Cases] = {
    kind: import_module(f"tests.plug_ins.orchestrator_cases.{kind}").CASES for kind in sorted(ORCHESTRATORS)
}
ASKED = [kind for kind, cases in CASES.items() if cases.asked]


@dataclass
class Ground:
    """One kind, its fake, and the client that its calls go through."""

    kind: str
    cases: Cases
    fake: Any
    url: str
    http: httpx.AsyncClient
    keys: int = 0

    def from_registry(self) -> Orchestrator:
        kind = ORCHESTRATORS[self.kind]
        return kind.open(kind.Config.model_validate(self.cases.section(self.url)), self.http)

    def impatient(self, url: str | None = None) -> Orchestrator:
        return self.cases.open(url or self.url, self.http, self.cases.timeout_seconds)

    @property
    def paused(self) -> bool:
        return self.cases.paused(self.fake)

    @property
    def looks(self) -> Any:
        return self.cases.looks(self.fake)

    @property
    def writes(self) -> int:
        return self.cases.writes(self.fake)

    async def found(self, orchestrator: Orchestrator) -> Mapping[str, Any] | None:
        """As the worker asks and records it, through JSON, before the first pause."""
        if not orchestrator.asks_first:
            return None
        state = await orchestrator.state(ref=self.cases.ref)
        kept: Mapping[str, Any] = json.loads(json.dumps(dict(state.as_found)))
        return kept

    def ask(self, ref: str | None = None, key: str | None = None) -> dict[str, Any]:
        """Under a new key, unless one is given."""
        self.keys += 1
        named = {"ref": ref or self.cases.ref, "workflow_id": "w1", "reason": "account ca_1 is gone"}
        return named | {"idempotency_key": key or f"{KEY}{self.keys}"}

    async def hold(self, orchestrator: Orchestrator) -> Mapping[str, Any] | None:
        """Paused by us; what the resume is given."""
        found = await self.found(orchestrator)
        answer = await orchestrator.pause(**self.ask(), found=found)
        return found if orchestrator.asks_first else answer.prior_state


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@asynccontextmanager
async def ground_of(kind: str, front: Front) -> AsyncIterator[Ground]:
    cases = CASES[kind]
    fake, url = cases.fake(), front.url
    async with AsyncExitStack() as stack:
        if cases.serve is not None:
            url = await stack.enter_async_context(cases.serve(fake))
        else:
            front.app = fake.app
        http = await stack.enter_async_context(outbound.open_client())
        yield Ground(kind, cases, fake, url, http)


@pytest.fixture(params=sorted(ORCHESTRATORS))
async def ground(request: pytest.FixtureRequest, front: Front) -> AsyncIterator[Ground]:
    async with ground_of(request.param, front) as made:
        yield made


@pytest.fixture(params=ASKED)
async def asked(request: pytest.FixtureRequest, front: Front) -> AsyncIterator[Ground]:
    async with ground_of(request.param, front) as made:
        yield made


async def failure_of(awaited: Any) -> DeliveryFailed:
    with pytest.raises(DeliveryFailed) as caught:
        await awaited
    assert str(caught.value), "it says what is wrong"
    assert not (caught.value.permanent and caught.value.ambiguous), "what may have arrived is not done with"
    return caught.value


def verdict_of(failure: DeliveryFailed) -> Verdict:
    if not failure.permanent:
        return "ambiguous" if failure.ambiguous else "retry"
    return "gone" if failure.code == GONE else "refused" if failure.code in OF_CREDENTIALS else "permanent"


# What it is


async def test_it_knows_its_name_its_kind_and_what_it_stops(ground: Ground) -> None:
    orchestrator = ground.from_registry()
    assert (orchestrator.name, orchestrator.kind) == ("ops", ground.kind)
    assert isinstance(orchestrator.stops, Stops)
    assert orchestrator.asks_first in (True, False)
    assert orchestrator.at_once is None or orchestrator.at_once > 0


@pytest.mark.parametrize("kind", sorted(ORCHESTRATORS))
def test_an_unknown_key_in_the_config_is_refused_and_no_secret_shown(kind: str) -> None:
    section = CASES[kind].section("http://127.0.0.1:1")
    with pytest.raises(ValidationError, match="urll") as caught:
        ORCHESTRATORS[kind].Config.model_validate({**section, "urll": "x"})
    config = ORCHESTRATORS[kind].Config.model_validate(section)
    assert not [secret for secret in CASES[kind].secrets[:2] if secret in f"{caught.value}{config!r}{config}"]


# A pause and its resume


async def test_a_resume_puts_back_what_was_found(ground: Ground) -> None:
    orchestrator, before = ground.from_registry(), ground.looks
    assert not ground.paused
    found = await ground.found(orchestrator)
    paused = await orchestrator.pause(**ground.ask(), found=found)
    assert (paused.status, ground.paused) == ("paused", True)
    assert paused.detail
    prior = found if orchestrator.asks_first else paused.prior_state
    resumed = await orchestrator.resume(**ground.ask(), prior_state=prior)
    assert (resumed.status, ground.looks) == ("resumed", before)
    assert resumed.detail


async def test_the_same_pause_twice_is_one(ground: Ground) -> None:
    orchestrator, ask = ground.from_registry(), ground.ask()
    found = await ground.found(orchestrator)
    first: Answer = await orchestrator.pause(**ask, found=found)
    looks, writes = ground.looks, ground.writes
    again = await orchestrator.pause(**ask, found=found)
    assert (again.status, ground.looks) == ("paused", looks)
    if not orchestrator.asks_first:
        assert (again, ground.writes) == (first, writes), "one effect for one key, and the same answer"


async def test_the_same_resume_twice_is_one(ground: Ground) -> None:
    orchestrator, before = ground.from_registry(), ground.looks
    prior, ask = await ground.hold(orchestrator), ground.ask()
    await orchestrator.resume(**ask, prior_state=prior)
    again = await orchestrator.resume(**ask, prior_state=prior)
    assert again.status in ("resumed", LEFT)
    assert ground.looks == before


async def test_a_pause_whose_answer_was_lost_is_repeated_and_undone(ground: Ground) -> None:
    orchestrator, ask, before = ground.impatient(), ground.ask(), ground.looks
    found = await ground.found(orchestrator)
    ground.cases.break_off(ground.fake)
    failure = await failure_of(orchestrator.pause(**ask, found=found))
    assert not failure.permanent
    assert ground.paused
    answer = await orchestrator.pause(**ask, found=found)
    prior = found if orchestrator.asks_first else answer.prior_state
    await orchestrator.resume(**ground.ask(), prior_state=prior)
    assert ground.looks == before


async def test_a_resume_whose_answer_was_lost_is_repeated(ground: Ground) -> None:
    orchestrator, before = ground.impatient(), ground.looks
    prior, ask = await ground.hold(orchestrator), ground.ask()
    ground.cases.break_off(ground.fake)
    assert not (await failure_of(orchestrator.resume(**ask, prior_state=prior))).permanent
    assert (await orchestrator.resume(**ask, prior_state=prior)).status in ("resumed", LEFT)
    assert ground.looks == before


# How it stands there, and what people did


async def test_state_says_whether_it_is_paused_and_changes_nothing(asked: Ground) -> None:
    orchestrator = asked.from_registry()
    for by_hand in (False, True):
        if by_hand:
            asked.cases.by_hand(asked.fake, True)
        looks, writes = asked.looks, asked.writes
        state = await orchestrator.state(ref=asked.cases.ref)
        assert (state.paused, asked.looks, asked.writes) == (by_hand, looks, writes)
        assert len(json.dumps(dict(state.as_found), allow_nan=False)) <= STATE_CHARS_MAX
        assert not [secret for secret in asked.cases.secrets if secret in f"{state}"]


async def test_what_a_person_had_paused_stays_paused(ground: Ground) -> None:
    """The worker sends nothing then, where it was told; where it was not, the orchestrator has to know it by itself."""
    orchestrator = ground.from_registry()
    ground.cases.by_hand(ground.fake, True)
    before = ground.looks
    if not orchestrator.asks_first:
        assert (await orchestrator.pause(**ground.ask())).was_paused is True
        return
    prior = await ground.hold(orchestrator)
    await orchestrator.resume(**ground.ask(), prior_state=prior)
    assert ground.looks == before


async def test_what_a_person_started_during_our_hold_is_left_as_it_is(asked: Ground) -> None:
    orchestrator = asked.from_registry()
    prior = await asked.hold(orchestrator)
    asked.cases.by_hand(asked.fake, False)
    looks = asked.looks
    assert (await orchestrator.resume(**asked.ask(), prior_state=prior)).status == LEFT
    assert asked.looks == looks


async def test_a_workflow_that_is_not_there_is_gone(asked: Ground) -> None:
    orchestrator = asked.from_registry()
    found = await asked.found(orchestrator)
    ref = asked.cases.gone_ref
    for awaited in (
        orchestrator.state(ref=ref),
        orchestrator.pause(**asked.ask(ref), found=found),
        orchestrator.resume(**asked.ask(ref), prior_state=found),
    ):
        assert verdict_of(await failure_of(awaited)) == "gone"
    assert asked.writes == 0


async def test_a_workflow_deleted_during_our_hold_is_gone(asked: Ground) -> None:
    orchestrator = asked.from_registry()
    prior = await asked.hold(orchestrator)
    asked.cases.delete(asked.fake)
    for awaited in (
        orchestrator.state(ref=asked.cases.ref),
        orchestrator.pause(**asked.ask(), found=prior),
        orchestrator.resume(**asked.ask(), prior_state=prior),
    ):
        assert verdict_of(await failure_of(awaited)) == "gone"


# What each answer means


@pytest.mark.parametrize("kind", sorted(ORCHESTRATORS))
def test_every_answer_that_matters_is_in_the_table(kind: str) -> None:
    assert CASES[kind].statuses.keys() >= CASES[kind].statuses_min
    assert CASES[kind].statuses[CASES[kind].credentials_refused] == "refused"


@pytest.mark.parametrize(
    ("kind", "status"), [(kind, status) for kind in sorted(CASES) for status in sorted(CASES[kind].statuses, key=str)]
)
async def test_an_answer_means_what_the_table_says(kind: str, status: int | str, front: Front) -> None:
    async with ground_of(kind, front) as ground:
        orchestrator, wanted = ground.impatient(), ground.cases.statuses[status]
        found = await ground.found(orchestrator)
        ground.cases.answers(ground.fake, status, {}, always=True)
        if wanted == "done":
            await orchestrator.pause(**ground.ask(), found=found)
            return
        failure = await failure_of(orchestrator.pause(**ground.ask(), found=found))
        assert verdict_of(failure) == wanted
        assert ground.writes == 0
        if ground.cases.asked:
            of_state = await failure_of(orchestrator.state(ref=ground.cases.ref))
            assert of_state.permanent == failure.permanent
            if wanted in ("gone", "refused"):
                assert verdict_of(of_state) == wanted


async def test_retry_after_is_handed_on_in_seconds(ground: Ground) -> None:
    if ground.cases.too_many is None:
        pytest.skip("nothing of the kind is said there")
    orchestrator = ground.impatient()
    found = await ground.found(orchestrator)
    ground.cases.answers(ground.fake, ground.cases.too_many, {"Retry-After": "17"}, always=True)
    failure = await failure_of(orchestrator.pause(**ground.ask(), found=found))
    assert failure.retry_after_seconds == 17


async def test_nobody_there_took_nothing(ground: Ground) -> None:
    failure = await failure_of(ground.impatient(ground.cases.nowhere).pause(**ground.ask(), found={}))
    assert (failure.code, verdict_of(failure)) == ("connect_failed", "retry")


async def test_no_answer_in_time_may_have_arrived(ground: Ground) -> None:
    orchestrator = ground.impatient()
    found = await ground.found(orchestrator)
    ground.cases.slow(ground.fake, ground.cases.timeout_seconds + 0.3)
    failure = await failure_of(orchestrator.pause(**ground.ask(), found=found))
    assert (failure.code, verdict_of(failure)) == ("timeout", "ambiguous")
    assert ground.paused


async def test_a_page_in_place_of_an_answer_is_a_failure_like_others(asked: Ground) -> None:
    """A proxy's log-in page, with 200."""
    if 200 in asked.cases.statuses or not STATUSES_MIN & asked.cases.statuses.keys():
        pytest.skip("it does not speak HTTP")
    orchestrator, page = asked.impatient(), "<html><title>Log in</title></html>"
    asked.cases.answers(asked.fake, 200, {"Content-Type": "text/html"}, page, always=True)
    await failure_of(orchestrator.state(ref=asked.cases.ref))
    await failure_of(orchestrator.check())
    await failure_of(orchestrator.list_workflows(limit=10))


# The check, and the list


async def test_check_says_something_and_changes_nothing(ground: Ground) -> None:
    said = await ground.from_registry().check()
    assert said
    assert not [secret for secret in ground.cases.secrets if secret in said]
    assert ground.writes == 0


async def test_check_proves_the_credentials(asked: Ground) -> None:
    asked.cases.answers(asked.fake, asked.cases.credentials_refused, {}, always=True)
    failure = await failure_of(asked.impatient().check())
    assert verdict_of(failure) == "refused"
    await failure_of(asked.impatient(asked.cases.nowhere).check())


async def test_the_list_is_bounded_and_its_refs_are_known(asked: Ground) -> None:
    orchestrator = asked.from_registry()
    [mine] = [one for one in await orchestrator.list_workflows(limit=100) if one.ref == asked.cases.ref]
    assert (bool(mine.name), mine.paused) == (True, False)
    asked.cases.fill(asked.fake, 250)
    many = await orchestrator.list_workflows(limit=200)
    assert len({one.ref for one in many}) == len(many) == 200
    assert len(await orchestrator.list_workflows(limit=3)) == 3
    for one in many[:3]:
        await orchestrator.state(ref=one.ref)
    assert asked.writes == 0


async def test_one_that_can_only_be_told_says_so(ground: Ground) -> None:
    if ground.cases.asked:
        pytest.skip("it can be asked")
    assert (await ground.from_registry().state(ref=ground.cases.ref)).paused is None
    failure = await failure_of(ground.from_registry().list_workflows(limit=10))
    assert (failure.code, failure.permanent) == ("cannot_list", True)


# Secrets stay with us


@pytest.mark.parametrize("trouble", ["refused", "gone", "too many", "down", "redirected", "slow", "broken", "away"])
async def test_a_secret_is_in_no_error_and_no_log(
    ground: Ground, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The other side may say our own words back to us."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # as observe.configure_logging has it: it logs whole URLs
    cases, orchestrator = ground.cases, ground.impatient()
    found = await ground.found(orchestrator)
    echo = " ".join(("no:", *cases.secrets))
    http = not isinstance(cases.credentials_refused, str)
    status: dict[str, int | str] = {
        "refused": cases.credentials_refused,
        "gone": 404 if http else "NOT_FOUND",
        "too many": 429 if http else "RESOURCE_EXHAUSTED",
        "down": 500 if http else "INTERNAL",
        "redirected": 308 if http else "UNAVAILABLE",
    }
    if trouble in status:
        cases.answers(ground.fake, status[trouble], {"X-Said": echo}, echo, always=True)
    elif trouble == "slow":
        cases.slow(ground.fake, cases.timeout_seconds + 0.3)
    elif trouble == "broken":
        cases.break_off(ground.fake)
    else:
        orchestrator = ground.impatient(cases.nowhere)
    failure = await failure_of(orchestrator.pause(**ground.ask(), found=found))
    said = f"{failure} {failure!r} {vars(failure)} {orchestrator!r}"
    for awaited in (orchestrator.check(), orchestrator.state(ref=cases.ref), orchestrator.list_workflows(limit=5)):
        with suppress(DeliveryFailed):
            said += f"{await awaited}"
    assert failure.__cause__ is None
    said += "".join(
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "uvicorn"))
    )
    assert not [secret for secret in cases.secrets if secret in said]
