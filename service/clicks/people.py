"""Whose clicks count: the users and user groups that the configuration permits, and nobody where it permits nobody.

A pause that is lifted by the wrong person calls a revoked token again, and a link authorizes as somebody: so without
`may_act` every click is refused, with the mend in the answer, and never taken from the whole workspace.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from urllib.parse import urlencode

import httpx

from service import outbound
from service.clicks.payload import Click
from service.errors import DeliveryFailed, Forbidden
from service.notify.slack import SlackConfig
from service.notify.slack_answers import refused, unreadable
from service.settings import Settings
from service.slack_settings import MayAct

MEMBERS_SECONDS = 60.0  # how long what Slack said of a group is believed
ASK_SECONDS_MAX = 2.0
SCOPE = "give the Slack app the scope usergroups:read and install it again"


def clickable(settings: Settings) -> list[SlackConfig]:
    """The Slack notifiers whose messages carry buttons. The sections were validated when the plug-ins were opened."""
    sections = [(name, section) for name, section in settings.notifiers.items() if section.get("kind") == "slack"]
    configs = [SlackConfig.model_validate({**section, "name": name}) for name, section in sections]
    return [config for config in configs if config.signing_secret is not None]


@dataclass(slots=True)
class Group:
    """One user group as Slack last told it; several clicks at once cause one question."""

    members: frozenset[str] = frozenset()
    until: float = 0.0  # time.monotonic()
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class People:
    """One for a process. The groups are those of the configuration, so there are never many."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._groups: dict[tuple[str, str], Group] = {}

    async def permit(self, click: Click, notifiers: Sequence[SlackConfig]) -> None:
        """Raises Forbidden, a sentence for the clicker, unless each of those whose secret signed the click, and whose
        channel it came from, permits it. A click from a channel of none of them needs them all."""
        heard = (click.channel_id, click.channel_name)
        for config in [one for one in notifiers if one.channel.removeprefix("#") in heard] or notifiers:
            await self._permit(click, config)

    async def _permit(self, click: Click, config: SlackConfig) -> None:
        may = config.may_act or MayAct()
        where = f'may_act of the notifier "{config.name}"'
        if (may.team is not None and click.team_id != may.team) or (may.app is not None and click.app_id != may.app):
            raise Forbidden(f"This click is from another workspace or Slack app than {where} names.", code="elsewhere")
        if may.nobody:
            raise Forbidden(
                f"Nobody is permitted to click here yet. Whoever runs Authwatch can set SLACK_MAY_ACT={click.user_id},"
                f' or {where} to {{users: ["{click.user_id}"]}}, and start it again.',
                code="nobody_permitted",
            )
        if click.user_id in may.users:
            return
        asked = await asyncio.gather(*(self._asked(config, group) for group in may.groups))
        if any(click.user_id in members for members in asked if isinstance(members, frozenset)):
            return
        unknown = next((failure for failure in asked if isinstance(failure, DeliveryFailed)), None)
        if unknown is not None:
            raise Forbidden(
                f"Slack could not be asked who is in the permitted groups, so nothing was done: {unknown}."
                " Click again in a minute.",
                code="groups_unknown",
            )
        raise Forbidden(
            f"You ({click.user_id}) are not among those whose clicks count here. Whoever runs Authwatch can add you to"
            f" {where} or to SLACK_MAY_ACT.",
            code="not_permitted",
        )

    async def _asked(self, config: SlackConfig, group_id: str) -> frozenset[str] | DeliveryFailed:
        try:
            return await self.members(config, group_id)
        except DeliveryFailed as exc:
            return exc

    async def members(self, config: SlackConfig, group_id: str) -> frozenset[str]:
        """The users of a group, as Slack said at most a minute ago. Raises DeliveryFailed when it cannot be asked."""
        group = self._groups.setdefault((config.name, group_id), Group())
        if time.monotonic() < group.until:
            return group.members
        try:
            async with asyncio.timeout(ASK_SECONDS_MAX), group.asking:
                if time.monotonic() >= group.until:  # who held the lock before us may have asked
                    group.members = await ask(self._http, config, group_id)
                    group.until = time.monotonic() + MEMBERS_SECONDS
                return group.members
        except TimeoutError:
            raise DeliveryFailed("Slack did not answer in time", code="timeout") from None


async def ask(http: httpx.AsyncClient, config: SlackConfig, group_id: str) -> frozenset[str]:
    """usergroups.users.list, once. Raises DeliveryFailed with the mend; no message holds the token."""
    answer = await outbound.call(
        http,
        "GET",
        f"{config.api_url}usergroups.users.list?{urlencode({'usergroup': group_id})}",
        headers={"authorization": f"Bearer {config.token.get_secret_value()}", "accept": "application/json"},
        timeout_seconds=ASK_SECONDS_MAX,
    )
    try:
        data = json.loads(answer.body)
    except (ValueError, RecursionError):
        data = None
    users = data.get("users") if isinstance(data, dict) and data.get("ok") is True else None
    if answer.status == 200 and isinstance(users, list) and all(isinstance(user, str) for user in users):
        return frozenset(users)
    if isinstance(data, dict) and data.get("error") == "missing_scope":
        raise DeliveryFailed(f"Slack: missing_scope: {SCOPE}", code="missing_scope", permanent=True)
    if isinstance(data, dict) and data.get("ok") is True:
        raise unreadable()
    raise refused(SimpleNamespace(status_code=answer.status, data=data, headers=answer.headers))
