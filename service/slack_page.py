"""docs/slack.md, made by the code that makes the messages: `python -m service.slack_page`. Its situations are rows as the
database would have them, so the page cannot say what Slack would not be sent."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from service import thread, together
from service.event import AccountKey
from service.notify.base import AlertView, Together
from service.notify.slack_blocks import blocks
from service.notify.slack_buttons import buttons
from service.notify.wording import word
from service.store.accounts import Account
from service.store.actions import EDIT_EVERY, PAUSE, RESUME
from service.store.alerts import Alert
from service.store.changes import NOTHING, Acted, Answered, Changes
from service.store.owned import Owner
from service.store.showing import Heard, Shown
from service.store.workflows import Hold
from service.together import MessageParts
from service.views import AlertParts

URL = "https://authwatch.example.com"
BEGAN = datetime(2026, 11, 26, 12, 9, 2, tzinfo=UTC)
POSTED = BEGAN + timedelta(seconds=1)
ALERT_ID = "01a0bcd1-7a00-7000-8000-00000000c1a7"
CLARK = AccountKey("scalekit", "env_live", "ca_7")


# What Prefect's pause shuts: one of three doors.
PREFECT = {"scheduled_starts": True, "manual_starts": False, "running_work": False}


@dataclass(frozen=True, slots=True)
class Situation:
    """`at`: when its message was last edited."""

    title: str
    said: str
    parts: MessageParts
    at: datetime
    changes: Changes = NOTHING

    def view(self) -> AlertView:
        return together.view_of(self.parts, public_url=URL, reauthorizable={CLARK.source})

    def blocks(self) -> list[dict[str, Any]]:
        view = self.view()
        return blocks(word(view, self.at), buttons=buttons(view))

    def replies(self) -> tuple[str, ...]:
        several = self.parts.together is not None and self.parts.together.total > 1
        lead = self.parts.lead
        known = thread.lines(
            self.parts.others if several else (lead,),
            self.changes,
            message_id=lead.alert.id,
            notification_id=None,
            several=several,
        )
        return thread.tell(thread.untold(known, None, POSTED), 0)[0]


def after(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def alert(rule_id: str, summary: str, severity: str = "P2", **changes: Any) -> Alert:
    made = Alert(
        id=ALERT_ID,
        rule_id=rule_id,
        rule_version="1",
        severity=severity,
        account=CLARK,
        connection_id="conn_google_ads",
        group={"account_id": CLARK.account_id},
        group_key=str(CLARK),
        episode=1,
        dedup_key="",
        state="firing",
        summary=summary,
        what_to_do=None,
        opened_at=BEGAN,
        fired_at=after(0.6),
        evidence=("one",),
    )
    return replace(made, **changes)


def hold(number: int, workflow_id: str, *, released_at: datetime | None = None, by: str | None = None) -> Hold:
    return Hold(
        id=f"hold_{number}",
        workflow_id=workflow_id,
        alert_id="",
        scope="workflow",
        account=CLARK,
        reason="",
        placed_at=after(0.6),
        released_at=released_at,
        release_reason=by,
    )


def owner(status: str, number: int = 7, name: str = "clark@example.com") -> Owner:
    return Owner(CLARK._replace(account_id=f"ca_{number}"), "GOOGLE_ADS", name, "org_1", status)


def shown(name: str, *, asked: str | None = None, resume: str = "auto") -> Shown:
    orchestrator = "prefect" if asked else None
    return Shown(name, orchestrator, asked, "done" if asked else None, None, None, {"stops": PREFECT}, resume)


def heard(kind: str, *minutes: float) -> tuple[Heard, ...]:
    """So many minutes before it broke."""
    return tuple(Heard(kind, BEGAN - timedelta(minutes=one), "GOOGLE_ADS", None) for one in minutes)


def answered(kind: str, at: datetime) -> Answered:
    return Answered(
        id=kind,
        kind=kind,
        orchestrator="prefect",
        workflow_id="wf_nightly",
        alert_id=ALERT_ID,
        state="done",
        asked_at=at,
        at=at + timedelta(seconds=0.9),
        error=None,
    )


def refreshed(outcome: str, at: datetime) -> Account:
    return Account(key=CLARK, first_seen_at=BEGAN, last_refresh_at=at, last_refresh_outcome=outcome)


def revoked() -> Situation:
    said = alert(
        "account-disconnected-active-workflow",
        "Account is DISCONNECTED and an active workflow depends on it",
        what_to_do="Ask the account's owner to authorize it again; the workflows go on by themselves once it has been"
        " ACTIVE for a while. If the disconnection was meant, take the account out of the workflow.",
    )
    held = (hold(1, "wf_nightly"), hold(2, "wf_export"))
    known = {"wf_nightly": shown("Nightly report", asked=PAUSE), "wf_export": shown("Export on request")}
    return Situation(
        "An account was revoked, and workflows are paused",
        "Two workflows depend on the account. One runs in Prefect, whose pause stops scheduled starts alone; the other has"
        " no orchestrator, so only the gate stands before it. Somebody has clicked Re-authorize: the link went to that"
        " person alone.",
        MessageParts(AlertParts(said, owner("DISCONNECTED"), held, known), heard=heard("account.disconnected", 0)),
        after(64),
        Changes(
            answered=(answered(PAUSE, after(0.6)),),
            acted=(Acted(id="a1", subject=said.id, action="alert.reauthorize", actor="dana", at=after(61)),),
        ),
    )


def connector() -> Situation:
    said = alert(
        "connection-failing",
        "6 accounts of one connection failed within ten minutes",
        "P1",
        account=None,
        group={"connection_id": "conn_google_ads"},
        state="acknowledged",
        acknowledged_at=after(140),
        acknowledged_by="dana",
        what_to_do="Check the connector's client id and secret, then the provider's status page. Do not ask the accounts'"
        " owners to authorize again before one of them has been tried.",
    )
    held = (replace(hold(1, "wf_nightly"), account=None),)
    return Situation(
        "A connector's credentials fail for many",
        "Six accounts of one connector failed together. It is not their owners who did something, so nobody is asked to"
        " authorize again. Dana has it in hand.",
        MessageParts(
            AlertParts(said, None, held, {"wf_nightly": shown("Nightly report", asked=PAUSE)}),
            heard=heard("token.refresh_failed", 8, 7, 5, 3, 1, 0),
        ),
        after(143),
        Changes(answered=(answered(PAUSE, after(0.6)),)),
    )


def recovered() -> Situation:
    well = after(305)
    said = alert(
        "token-refresh-failing",
        "Token refresh is failing",
        state="resolved",
        condition_ended_at=well,
        resolved_at=well + timedelta(seconds=0.4),
        resolved_reason="recovered",
    )
    held = (hold(1, "wf_nightly", released_at=after(336), by="account_well"),)
    return Situation(
        "A token refresh failed, then recovered",
        "The provider gave no reason, and none is made up. The workflow went on by itself once the account had been well"
        " for 30 s.",
        MessageParts(
            AlertParts(said, owner("ACTIVE"), held, {"wf_nightly": shown("Nightly report", asked=RESUME)}),
            heard=heard("token.refresh_failed", 8, 4, 0),
            account=refreshed("success", well),
        ),
        after(340),
        Changes(answered=(answered(PAUSE, after(0.6)), answered(RESUME, after(336)))),
    )


def manual() -> Situation:
    well = after(610)
    said = alert(
        "account-disconnected-active-workflow",
        "Account is DISCONNECTED and an active workflow depends on it",
        state="resolved",
        condition_ended_at=well,
        resolved_at=well + timedelta(seconds=0.4),
        resolved_reason="recovered",
    )
    known = {"wf_payouts": shown("Payouts", resume="manual")}
    return Situation(
        "A resume is asked for",
        "The workflow says `resume: manual`: the account is well again, and a person decides.",
        MessageParts(
            AlertParts(said, owner("ACTIVE"), (hold(1, "wf_payouts"),), known), heard=heard("account.disconnected", 0)
        ),
        after(613),
    )


def storm() -> Situation:
    said = alert("account-disconnected-active-workflow", "Account is DISCONNECTED and an active workflow depends on it")
    members = tuple(
        AlertParts(
            replace(said, id=f"{said.id[:-2]}{number:02}", opened_at=after(number)),
            owner("DISCONNECTED", number, f"user{number}@example.com"),
            (replace(hold(number, "wf_sync"), scope="account", placed_at=after(number + 0.5)),),
            {"wf_sync": shown("Sync")},
        )
        for number in range(40)
    )
    counted = Together(
        total=40,
        firing=40,
        first_at=BEGAN,
        last_at=after(39),
        names=tuple(together.name_of(one) for one in members[: together.NAMES_MAX]),
    )
    return Situation(
        "A storm is one message",
        "Forty accounts of one connector broke within a minute: one message that counts, edited as they come.",
        MessageParts(members[0], members, counted),
        after(45),
    )


def situations() -> tuple[Situation, ...]:
    return revoked(), connector(), recovered(), manual(), storm()


INTRODUCTION = f"""<!-- Made by `python -m service.slack_page`. Change the code that makes the messages, not this file. -->
# Slack

One message stands for an alert. It is posted at once, edited as things change (what changes within {EDIT_EVERY.seconds} s is one edit), and its thread
keeps what happened, a line each. An edit wakes nobody; what does is in [routing.md](routing.md).

## Set-up

1. Make a Slack app and give its bot the scopes `chat:write` and `channels:history` (`groups:history` for a private channel). With the latter, a message that may have gone out is looked for before it is sent again; without, it is repeated once and marked.
2. Install it, invite the bot to the channel (`/invite`), and set `SLACK_BOT_TOKEN` (`xoxb-...`) and `SLACK_CHANNEL` (an id, `C...`).
3. For buttons: in the app, switch on *Interactivity* with the request URL `AUTHWATCH_PUBLIC_URL/slack/interactions`, and set `SLACK_SIGNING_SECRET` (*Basic Information*). Without the secret no click could be trusted, and no button is shown.
4. `authwatch doctor` says whether it works.

| button | is there | does |
|---|---|---|
| Re-authorize | where that is the next step and a link can be made | shows a fresh link to you alone: whoever opens it authorizes as that user |
| Acknowledge, Snooze | while it fires | stops repeats and escalations; pauses and the gate stay |
| Resume workflows | while this alert holds any | asks first, then lifts what the alert holds; the same episode does not pause again |
| Resolve | until it is resolved | asks first, then closes the alert; what is paused stays so until the account is well |
| Open | always | the alert in Authwatch |

A thread takes {thread.TOLD_MAX} changes; what comes after that only edits the message.
"""


def page() -> str:
    return INTRODUCTION + "".join(section(one) for one in situations())


def section(one: Situation) -> str:
    replies = "".join(f"\n    ↳ {line}" for line in one.replies())
    body = "\n".join(line.rstrip() for line in as_text(one.blocks()))
    return f"\n## {one.title}\n\n{one.said}\n\n```text\n{body}\n{replies}\n```\n".replace("\n\n```\n", "\n```\n")


def as_text(laid_out: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Blocks as a reader sees them."""
    for block in laid_out:
        if block["type"] == "actions":
            yield " ".join(f"[{one['text']['text']}]" for one in block["elements"])
            continue
        for text in [block["text"]] if "text" in block else block["elements"]:
            yield html.unescape(re.sub(r"<[^|>]*\|([^>]*)>", r"\1", text["text"]))


if __name__ == "__main__":
    print(page(), end="")
