"""Slack by slack-sdk: one message per alert, edited in place; it tries once and says exactly what came of it.

Slack documents no idempotency key. Every message therefore carries its delivery id as metadata, and after a try whose
fate is unknown `find` looks for it in the channel's history before anything is posted again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from service.errors import DeliveryFailed
from service.notify.base import AlertView, MessageRef
from service.notify.plain import clean
from service.notify.slack_answers import MEND, reference, refused, unreadable
from service.notify.slack_blocks import blocks, fallback, reply_blocks, reply_fallback
from service.notify.slack_buttons import buttons
from service.notify.wording import word
from service.slack_settings import MayAct, check_signing_secret

TIMEOUT_SECONDS = 10
TOKEN_CHARS_MIN = 6
METADATA_TYPE = "authwatch_alert"
FIND_PAGES_MAX = 5
FIND_PAGE_MESSAGES = 100
FIND_WINDOW = timedelta(hours=24)
CLOCK_SLACK = timedelta(minutes=5)

CHANNEL_ID = re.compile(r"[CGD][A-Z0-9]{6,}")

log = logging.getLogger("authwatch.slack")
log.setLevel(logging.INFO)  # the SDK writes whole requests and answers at DEBUG, and checks this logger's own level


class SlackConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    kind: Literal["slack"] = "slack"
    name: str = Field(default="slack", min_length=1, max_length=80)
    token: SecretStr
    channel: str = Field(min_length=1, max_length=200)
    api_url: str = AsyncWebClient.BASE_URL
    signing_secret: SecretStr | None = None  # without one, messages carry no buttons
    may_act: MayAct | None = None

    @field_validator("token")
    @classmethod
    def token_can_be_right(cls, token: SecretStr) -> SecretStr:
        value = token.get_secret_value()
        if len(value) < TOKEN_CHARS_MIN or not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError("not a Slack bot token; it looks like xoxb-...")
        return token

    @field_validator("signing_secret")
    @classmethod
    def signing_secret_can_be_right(cls, secret: SecretStr | None) -> SecretStr | None:
        return check_signing_secret(secret) if secret is not None else None

    @field_validator("api_url")
    @classmethod
    def api_url_is_a_base(cls, url: str) -> str:
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
        ):
            raise ValueError("not a base URL of the form https://slack.com/api/")
        # Without the last slash the method's name would replace the last part of the path.
        return url if url.endswith("/") else url + "/"


class SlackNotifier:
    kind = "slack"
    idempotent = False
    one_incident = False
    threads = True

    def __init__(self, config: SlackConfig, *, timeout_seconds: int = TIMEOUT_SECONDS) -> None:
        self.name = config.name
        self._channel = config.channel
        self._clickable = config.signing_secret is not None
        self._channel_id = config.channel if CHANNEL_ID.fullmatch(config.channel) else None
        self._client = AsyncWebClient(
            token=config.token.get_secret_value(),
            base_url=config.api_url,
            timeout=timeout_seconds,
            # The SDK's default handler posts again after a lost connection, and so posts twice.
            retry_handlers=[],
            logger=log,
        )
        # The constructor takes HTTPS_PROXY and HTTP_PROXY from the environment, for loopback too, and has no switch.
        self._client.proxy = None
        self._timeout_seconds, self._calls = timeout_seconds, 0

    async def _call(self, request: Callable[[], Awaitable[AsyncSlackResponse]]) -> Mapping[str, Any]:
        """Calls that overlap share their connections: in a storm one for each message would be most of its cost. With
        the last of them the session goes, so that no connection is kept that Slack may close unseen."""
        if self._calls == 0:
            self._client.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout_seconds))
        self._calls += 1
        try:
            return await call(request)
        finally:
            self._calls -= 1
            if self._calls == 0 and (session := self._client.session) is not None:
                self._client.session = None
                await session.close()

    async def post(self, view: AlertView, *, delivery_id: str, possible_repeat: bool) -> MessageRef:
        wording = word(view, datetime.now(UTC))
        answer = await self._call(
            lambda: self._client.chat_postMessage(
                channel=self._channel,
                text=fallback(wording, possible_repeat=possible_repeat),
                blocks=blocks(wording, possible_repeat=possible_repeat, buttons=self._buttons(view)),
                unfurl_links=False,
                unfurl_media=False,
                metadata=metadata(delivery_id),
            )
        )
        ref = reference(answer)
        self._channel_id = ref.channel
        return ref

    async def update(self, view: AlertView, ref: MessageRef) -> MessageRef:
        wording = word(view, datetime.now(UTC))
        # Text without blocks would make Slack take the blocks away.
        answer = await self._call(
            lambda: self._client.chat_update(
                channel=ref.channel,
                ts=ref.ts,
                text=fallback(wording),
                blocks=blocks(wording, buttons=self._buttons(view)),
            )
        )
        return reference(answer)

    async def thread(
        self, view: AlertView, ref: MessageRef, lines: Sequence[str], *, delivery_id: str, possible_repeat: bool = False
    ) -> MessageRef:
        answer = await self._call(
            lambda: self._client.chat_postMessage(
                channel=ref.channel,
                thread_ts=ref.ts,
                text=reply_fallback(lines, possible_repeat=possible_repeat),
                blocks=reply_blocks(lines, possible_repeat=possible_repeat),
                unfurl_links=False,
                unfurl_media=False,
                metadata=metadata(delivery_id),
            )
        )
        return reference(answer)

    def _buttons(self, view: AlertView) -> list[dict[str, Any]]:
        return buttons(view) if self._clickable else []

    async def find(self, delivery_id: str, *, since: datetime | None = None) -> MessageRef | None:
        channel = self._channel_id
        if channel is None:
            raise fate_unknown("the history is read by channel id; configure the channel as C..., not by its name")
        return await self._look(self._client.conversations_history, {"channel": channel}, delivery_id, since)

    async def find_reply(
        self, delivery_id: str, ref: MessageRef, *, since: datetime | None = None
    ) -> MessageRef | None:
        where = {"channel": ref.channel, "ts": ref.ts}
        return await self._look(self._client.conversations_replies, where, delivery_id, since)

    async def _look(
        self,
        read: Callable[..., Awaitable[AsyncSlackResponse]],
        where: Mapping[str, str],
        delivery_id: str,
        since: datetime | None,
    ) -> MessageRef | None:
        oldest = (since or datetime.now(UTC) - FIND_WINDOW) - CLOCK_SLACK
        cursor: str | None = None
        for _ in range(FIND_PAGES_MAX):
            page = await self._page(read, where, oldest, cursor)
            for message in page.get("messages") or ():
                if delivery_of(message) == delivery_id and isinstance(message.get("ts"), str):
                    return MessageRef(channel=where["channel"], ts=message["ts"])
            cursor = (page.get("response_metadata") or {}).get("next_cursor") or None
            if not page.get("has_more"):
                return None
            if cursor is None:
                break
        raise fate_unknown(f"more than {FIND_PAGES_MAX * FIND_PAGE_MESSAGES} messages are in the way")

    async def _page(
        self,
        read: Callable[..., Awaitable[AsyncSlackResponse]],
        where: Mapping[str, str],
        oldest: datetime,
        cursor: str | None,
    ) -> Mapping[str, Any]:
        try:
            return await self._call(
                lambda: read(
                    **where,
                    oldest=f"{oldest.timestamp():.6f}",
                    limit=FIND_PAGE_MESSAGES,
                    cursor=cursor,
                    include_all_metadata=True,
                )
            )
        except DeliveryFailed as exc:
            # The caller learns one thing: we could not look. Whether looking again can help stays as it was.
            raise fate_unknown(str(exc), like=exc) from None

    async def check(self) -> str:
        granted: set[str] = set()

        async def ask() -> AsyncSlackResponse:
            answer = await self._client.auth_test()
            granted.update(str(answer.headers.get("x-oauth-scopes") or "").replace(" ", "").split(","))
            return answer

        answer = await self._call(ask)
        granted.discard("")
        if granted and "chat:write" not in granted:
            raise DeliveryFailed(f"Slack: missing_scope: {MEND['missing_scope']}", code="missing_scope", permanent=True)
        who, team = clean(str(answer.get("user")), 80), clean(str(answer.get("team")), 80)
        said = f"Slack takes the token as {who} of {team}; alerts go to {clean(self._channel, 200)}."
        if granted and not granted & {"channels:history", "groups:history"}:
            said += " Without channels:history a post whose fate is unknown is repeated once and marked so."
        return said


def open_slack(config: SlackConfig, http: httpx.AsyncClient | None = None) -> SlackNotifier:
    """slack-sdk brings a client of its own; `http` is there so that every plug-in opens alike."""
    return SlackNotifier(config)


async def call(request: Callable[[], Awaitable[AsyncSlackResponse]]) -> Mapping[str, Any]:
    """One call to Slack. The failure is raised outside the `except`: the SDK's errors may carry the request's token."""
    try:
        answer = await request()
        data = answer.data
    except SlackApiError as exc:
        failure = refused(exc.response)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        failure = DeliveryFailed("Slack cannot be reached; check the network and SLACK_API_URL", code="connect_failed")
    except TimeoutError:
        failure = DeliveryFailed("Slack did not answer in time", code="timeout", ambiguous=True)
    except (aiohttp.ClientError, OSError):
        failure = DeliveryFailed("the connection to Slack broke off", code="disconnected", ambiguous=True)
    except (SlackClientError, AttributeError, LookupError, TypeError, ValueError):
        # The SDK takes a JSON answer that is no object for one, and trips over it.
        failure = unreadable()
    else:
        if isinstance(data, dict):
            return data
        failure = unreadable()
    raise failure


def metadata(delivery_id: str) -> dict[str, Any]:
    return {"event_type": METADATA_TYPE, "event_payload": {"delivery_id": delivery_id}}


def delivery_of(message: Any) -> str | None:
    metadata = message.get("metadata") if isinstance(message, dict) else None
    if not isinstance(metadata, dict) or metadata.get("event_type") != METADATA_TYPE:
        return None
    payload = metadata.get("event_payload")
    found = payload.get("delivery_id") if isinstance(payload, dict) else None
    return found if isinstance(found, str) else None


def fate_unknown(why: str, *, like: DeliveryFailed | None = None) -> DeliveryFailed:
    return DeliveryFailed(
        f"cannot tell whether an earlier message arrived: {why}",
        code="fate_unknown",
        permanent=like.permanent if like else True,
        retry_after_seconds=like.retry_after_seconds if like else None,
        status=like.status if like else None,
    )
