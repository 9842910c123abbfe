"""A house to test the stories in: a real database, our own parts, and other companies' servers rebuilt strictly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping, text

from service import gate, health, rule_sets, steer, views
from service.gate import Answer, Asked
from service.providers import PROVIDERS
from service.runtime import Runtime, open_runtime
from service.settings import load_settings
from service.steer import Context, Wanted
from service.store import accounts, alerts, hold_history, log, workflows
from service.store.log import Receipt
from service.store.session import begin
from tests.fakes import serve
from tests.fakes import slack as fake_slack
from tests.fakes.hec import FakeHec
from tests.fakes.orchestrator import PATH, SECRET, FakeOrchestrator
from tests.fakes.slack import FakeSlack
from tests.make import make_receipt
from workers.act import act
from workers.evaluate import evaluate
from workers.ship import ship

HEC_TOKEN = "11111111-2222-3333-4444-555555555555"
EVENTS = {
    "ACTIVE": ("account.authorized", "ACTIVE"),
    "EXPIRED": ("connected_account.status_updated", "EXPIRED"),
    "PENDING_AUTH": ("connected_account.status_updated", "PENDING_AUTH"),
    "PENDING_VERIFICATION": ("connected_account.status_updated", "PENDING_VERIFICATION"),
    "DISCONNECTED": ("connected_account.status_updated", "DISCONNECTED"),
    "DELETED": ("account.deleted", None),
    "failed": ("token.refresh_failed", None),
    "succeeded": ("token.refresh_succeeded", None),
}
RULES = """\
version: 1
rules:
- id: token-refresh-failing
  severity: P2
  count:
    match: {{kind: token.refresh_failed}}
    within: 15m
    gte: 3
  resolve:
    event:
    - kind: [token.refresh_succeeded, account.authorized]
    - became: ACTIVE
  actions:
  - pause_workflows: {{stable_for: {stable_for}}}
  annotations: {{summary: "Token refresh is failing", what_to_do: "Authorize again"}}
- id: account-disconnected-active-workflow
  severity: P2
  state:
    of: account
    match:
    - status: [DISCONNECTED, DELETED]
      active_workflows: {{gte: 1}}
    - status: EXPIRED
      active_workflows: {{gte: 1}}
      for: {expired_for}
  actions:
  - pause_workflows: {{stable_for: {stable_for}}}
  annotations: {{summary: "Account is {{{{ status }}}} and an active workflow depends on it"}}
"""


def make_event(
    what: str,
    at: datetime,
    *,
    account: str = "ca_1",
    connection: str = "conn_1",
    environment: str = "env_1",
    event_id: str | None = None,
) -> Receipt:
    """What the provider would send, read by our own adapter. `what`: a word of EVENTS, or an unknown status."""
    kind, status = EVENTS.get(what, ("connected_account.status_updated", what))
    receipt = make_receipt()
    event_id = event_id or receipt.event.event_id
    body = PROVIDERS["scalekit"].example(
        kind, account_id=account, connection_id=connection, event_id=event_id, now=at, status=status
    )
    payload = json.loads(body) | {"environment_id": environment}
    return make_receipt(
        body=json.dumps(payload).encode(),
        **{
            name: getattr(PROVIDERS["scalekit"].normalise(json.dumps(payload).encode(), event_id), name)
            for name in make_receipt().event.__slots__
        },
    )


@dataclass
class House:
    runtime: Runtime
    slack: FakeSlack
    hec: FakeHec
    orchestrator: FakeOrchestrator
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def accept(self, *receipts: Receipt) -> None:
        async with begin(self.runtime.engine) as conn:
            await log.accept(conn, receipts)

    async def tell(self, what: str, *, ago: float = 0.0, **names: str) -> Receipt:
        """The provider says it; it happened `ago` seconds before now."""
        receipt = make_event(what, datetime.now(UTC) - timedelta(seconds=ago), **names)
        await self.accept(receipt)
        return receipt

    async def told(self, what: str, *, ago: float = 0.0, **names: str) -> Receipt:
        """The provider says it, and it is evaluated."""
        receipt = await self.tell(what, ago=ago, **names)
        await evaluate(self.runtime)
        return receipt

    async def work(self) -> None:
        """Every story once, as the worker would."""
        await evaluate(self.runtime)
        await act(self.runtime)
        await ship(self.runtime)

    @property
    def context(self) -> Context:
        return Context(
            actor="a person",
            notifiers=list(self.runtime.notifiers),
            orchestrators=list(self.runtime.orchestrators),
        )

    async def put(
        self,
        workflow_id: str = "w1",
        *,
        account_ids: Sequence[str] = (),
        connection_ids: Sequence[str] = (),
        active: bool = True,
        pause: str | None = None,
        resume: str = "auto",
        ref: str | None = None,
    ) -> dict[str, Any]:
        """PUT /v1/workflows/{workflow_id}: the answer."""
        wanted = Wanted(
            workflow_id=workflow_id,
            name=None,
            account_ids=tuple(account_ids),
            connection_ids=tuple(connection_ids),
            active=active,
            pause=pause or ("account" if connection_ids else "workflow"),
            resume=resume,
            orchestrator_name="flows" if ref else None,
            orchestrator_ref=ref,
        )
        async with begin(self.runtime.engine) as conn:
            context = replace(self.context, ruleset=await rule_sets.in_force(conn, self.runtime))
            workflow = await steer.put_workflow(conn, wanted, context)
            return (await views.workflows_json(conn, [workflow]))[0]

    async def delete(self, workflow_id: str = "w1") -> None:
        async with begin(self.runtime.engine) as conn:
            context = replace(self.context, ruleset=await rule_sets.in_force(conn, self.runtime))
            await steer.delete_workflow(conn, workflow_id, context)

    async def pause(self, workflow_id: str = "w1", *, lasts: timedelta | None = None) -> None:
        async with begin(self.runtime.engine) as conn:
            await steer.pause_workflow(conn, workflow_id, "a person's reason", self.context, lasts=lasts)

    async def resume(self, workflow_id: str = "w1") -> None:
        async with begin(self.runtime.engine) as conn:
            await steer.resume_workflow(conn, workflow_id, "a person's reason", self.context)

    async def resolve(self, alert_id: str) -> None:
        async with begin(self.runtime.engine) as conn:
            context = replace(self.context, ruleset=await rule_sets.in_force(conn, self.runtime))
            await steer.resolve_alert(conn, alert_id, context)

    async def workflow(self, workflow_id: str = "w1") -> dict[str, Any]:
        async with begin(self.runtime.engine) as conn:
            workflow = await workflows.load(conn, workflow_id)
            assert workflow is not None
            return (await views.workflows_json(conn, [workflow]))[0]

    async def gate(
        self, *, workflow_id: str | None = None, account_id: str | None = None, on_unknown: Any = "deny"
    ) -> Answer:
        async with begin(self.runtime.engine) as conn:
            workflow = await workflows.load(conn, workflow_id) if workflow_id else None
            holds = await workflows.open_holds(conn, workflow_ids=[workflow_id]) if workflow_id else []
            account = await accounts.find(conn, account_id) if account_id else None
            found = (await alerts.unresolved_of(conn, [account.key]))[account.key] if account else []
            return gate.decide(
                Asked(
                    workflow_id=workflow_id,
                    workflow=workflow,
                    holds=holds,
                    account_id=account_id,
                    account=account,
                    alert_ids=[alert.id for alert in found],
                    on_unknown=on_unknown,
                    evaluation_lag_seconds=await health.evaluation_lag_seconds(conn),
                )
            )

    async def history(self, workflow_id: str = "w1") -> list[dict[str, Any]]:
        """GET /v1/workflows/{workflow_id}/history: the first page."""
        async with begin(self.runtime.engine) as conn:
            found = await hold_history.history(conn, workflow_id, 1000)
            return await views.history_json(conn, workflow_id, found)

    async def rows(self, query: str) -> list[RowMapping]:
        async with begin(self.runtime.engine) as conn:
            return list((await conn.execute(text(query))).mappings())

    async def run(self, statement: str) -> None:
        async with begin(self.runtime.engine) as conn:
            await conn.execute(text(statement))

    async def alerts(self) -> list[RowMapping]:
        return await self.rows("SELECT * FROM alerts ORDER BY fired_at, id")

    async def kinds(self) -> list[str]:
        """What Authwatch itself decided, in the order of the log."""
        return [
            row["kind"]
            for row in await self.rows("SELECT kind FROM events WHERE origin = 'authwatch' ORDER BY position")
        ]

    def posts(self) -> int:
        return len(self.slack.calls["chat.postMessage"])


def write_rules(folder: Path, rules: str) -> Path:
    (folder / "rules").mkdir(parents=True, exist_ok=True)
    (folder / "rules" / "rules.yml").write_text(rules)
    return folder / "rules"


def write_config(
    folder: Path, orchestrator_url: str, sources: Mapping[str, Any] | None, more: Mapping[str, Any] | None = None
) -> Path:
    section = {"kind": "webhook", "url": orchestrator_url + PATH, "secret": SECRET}
    named = {"sources": dict(sources)} if sources else {}
    (folder / "config.yaml").write_text(json.dumps({"orchestrators": {"flows": section}} | named | dict(more or {})))
    return folder / "config.yaml"


@asynccontextmanager
async def open_house(
    database_url: str,
    folder: Path,
    *,
    stable_for: str = "1s",
    expired_for: str = "1s",
    rules: str | None = None,
    variables: Mapping[str, str] | None = None,
    sources: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> AsyncIterator[House]:
    """`config`: more keys of the config file."""
    rules_folder = write_rules(folder, rules or RULES.format(stable_for=stable_for, expired_for=expired_for))
    slack, hec, orchestrator = FakeSlack(), FakeHec(HEC_TOKEN), FakeOrchestrator()
    async with AsyncExitStack() as stack:
        slack.url = await stack.enter_async_context(serve(slack.app))
        hec_url = await stack.enter_async_context(serve(hec.app))
        orchestrator_url = await stack.enter_async_context(serve(orchestrator.app))
        settings = load_settings(
            {
                "DATABASE_URL": database_url,
                "AUTHWATCH_RULES": str(rules_folder),
                "AUTHWATCH_CONFIG": str(write_config(folder, orchestrator_url, sources, config)),
                "SLACK_BOT_TOKEN": fake_slack.TOKEN,
                "SLACK_CHANNEL": fake_slack.CHANNEL,
                "SLACK_API_URL": slack.url + "/api/",
                "SPLUNK_HEC_URL": hec_url,
                "SPLUNK_HEC_TOKEN": HEC_TOKEN,
                **(variables or {}),
            }
        )
        runtime = await stack.enter_async_context(open_runtime(settings, connections_max=8))
        assert not runtime.rules.problems
        yield House(runtime, slack, hec, orchestrator)
