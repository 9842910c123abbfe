"""A fresh re-authorization link, made when somebody asks for it: whether there may be one, and that it was asked for.

The link authorizes as the account's user. It is in no row, no log and no error: only the clicker gets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service import steer
from service.clicks.payload import Click
from service.errors import BadRequest, Conflict, DeliveryFailed
from service.event import WELL, AccountKey
from service.provider_apis import sources_of
from service.provider_apis.base import ProviderApi
from service.settings import Settings
from service.store import accounts, log
from service.store.accounts import Account
from service.store.notifications import announce

ACTION = "alert.reauthorize"
AGAIN_AFTER = timedelta(seconds=30)  # a second click within it asks for nothing new
ASKED_BEFORE = text(
    """
    SELECT EXISTS (
        SELECT FROM events
        WHERE origin = 'authwatch' AND received_at >= :since AND kind = 'audit' AND event_id = :alert_id
        AND details ->> 'action' = :action AND split_part(details ->> 'actor', ' ', 1) = :who
    )
    """
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose link to make. `asked_before`: somebody's second click, or the same one again."""

    key: AccountKey
    account: Account | None
    asked_before: bool


async def ask_for(conn: AsyncConnection, click: Click, alert_id: str, api: ProviderApi, settings: Settings) -> Wanted:
    """Writes into the audit log that a link was asked for, once for a click, whichever process it comes to; the caller's
    transaction commits that before there is a link. Raises NotFound, Conflict or BadRequest with a sentence."""
    alert, now = await steer.open_alert(conn, alert_id)  # under the account's lock: two clicks come one after the other
    if alert.account is None:
        raise BadRequest(
            "This alert is about no single account, so there is no link for it: mend the connector's own credentials, or"
            " take the alert of one account.",
            code="no_account",
        )
    account = (await accounts.load(conn, [alert.account])).get(alert.account)
    if alert.state == "resolved" and (account is None or account.status == WELL):
        raise Conflict(
            "This alert is resolved and its account is well: nothing is left to re-authorize.", code="is_well"
        )
    if alert.account.source not in sources_of(settings, api.provider):
        raise BadRequest(
            f'The account is of the source "{alert.account.source}", and the credentials that Authwatch has are for'
            f" {api.provider}: make the link there.",
            code="another_provider",
        )
    since = min(click.at, now) - AGAIN_AFTER
    before = {"since": since, "alert_id": alert.id, "action": ACTION, "who": click.actor.split(" ")[0]}
    if (await conn.execute(ASKED_BEFORE, before)).scalar_one():
        return Wanted(alert.account, account, asked_before=True)
    await log.append(conn, [steer.audit(click.actor, ACTION, alert.id, now, f"a link for {alert.account}")])
    await announce(conn, [alert.id], now)  # its thread says that somebody asked for it
    return Wanted(alert.account, account, asked_before=False)


def words(wanted: Wanted, expires_at: datetime | None) -> str:
    whose = wanted.account.identifier if wanted.account and wanted.account.identifier else wanted.key.account_id
    until = f" It is good until {expires_at:%Y-%m-%d %H:%M:%S} UTC." if expires_at is not None else ""
    return (
        f"A fresh link to re-authorize {whose}. Whoever opens it authorizes as that user, so give it to that user alone"
        f" and never to a channel; only you see it.{until}"
    )


def words_of_failure(exc: DeliveryFailed, wanted: Wanted) -> str:
    if exc.status == 404:
        return (
            f"The provider knows no account {wanted.key.account_id} where SCALEKIT_ENV_URL and its credentials lead. Are"
            f' they those of the environment "{wanted.key.environment_id}"?'
        )
    again = int(AGAIN_AFTER.total_seconds())
    return f"The provider gave no link: {exc}. Click again in {again} s, or make it in the provider's own dashboard."
