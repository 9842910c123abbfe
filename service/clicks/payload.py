"""What a genuine request of Slack asks for: which button, of which alert, by whom, when. Pure.

Source: docs.slack.dev, block_actions payload: a form field `payload` with a JSON object.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from service.errors import SignatureInvalid
from service.notify.plain import clean
from service.redact import redact_text

FIELDS_MAX = 8
NAME_CHARS_MAX = 80
# By Slack's `action_id`; `value` is the alert's id.
ACTIONS = {
    "authwatch_acknowledge": "acknowledge",
    "authwatch_snooze": "snooze",
    "authwatch_resolve": "resolve",
    "authwatch_resume": "resume",
    "authwatch_reauthorize": "reauthorize",
}

SlackId = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9]{1,31}$")]
Line = Annotated[str, StringConstraints(max_length=400)]
Long = Annotated[str, StringConstraints(max_length=4000)]


class Part(BaseModel):
    """Slack adds fields as it likes; what we read must be of the kind it documents."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class User(Part):
    id: SlackId
    username: Line | None = None
    name: Line | None = None


class Team(Part):
    id: SlackId


class Channel(Part):
    id: SlackId
    name: Line | None = None


class Button(Part):
    action_id: Line
    value: Long | None = None


class BlockActions(Part):
    user: User
    actions: list[Button]
    team: Team | None = None
    api_app_id: SlackId | None = None
    channel: Channel | None = None
    response_url: Long | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Click:
    """`alert_id` None: the button's value is no id of an alert. `at`: when Slack signed it. `response_url` lets whoever
    has it write to the channel for half an hour, so it is never shown."""

    action: str
    alert_id: str | None
    user_id: str
    user_name: str
    at: datetime
    team_id: str | None = None
    app_id: str | None = None
    channel_id: str | None = None
    channel_name: str | None = None
    response_url: str | None = field(default=None, repr=False)

    @property
    def actor(self) -> str:
        """Who it was, as the audit log and the alert say it."""
        return f"slack:{self.user_id} ({self.user_name})" if self.user_name else f"slack:{self.user_id}"


def read_click(body: bytes, at: datetime) -> Click | None:
    """None when there is nothing to do: a button that only opens a link, or what is no click. Raises SignatureInvalid, and
    nothing else, for a body that Slack would not have sent."""
    payload = read_payload(body)
    if payload.get("type") != "block_actions":
        return None
    try:
        said = BlockActions.model_validate(payload)
    except ValidationError:
        raise malformed() from None
    button = next((one for one in said.actions if one.action_id in ACTIONS), None)
    if button is None:
        return None
    return Click(
        action=ACTIONS[button.action_id],
        alert_id=as_uuid(button.value),
        user_id=said.user.id,
        user_name=shown(said.user.username or said.user.name or ""),
        at=at,
        team_id=said.team.id if said.team else None,
        app_id=said.api_app_id,
        channel_id=said.channel.id if said.channel else None,
        channel_name=said.channel.name if said.channel else None,
        response_url=said.response_url,
    )


def shown(name: str) -> str:
    """A name that anybody may have given themselves, as one short line without links, secrets and unseen characters."""
    return clean("".join(char for char in redact_text(name) if char.isprintable()), NAME_CHARS_MAX)


def read_payload(body: bytes) -> dict[str, Any]:
    try:
        fields = parse_qsl(
            body.decode(), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=FIELDS_MAX
        )
        [written] = [value for name, value in fields if name == "payload"]
        payload = json.loads(written)
    except (ValueError, RecursionError):
        raise malformed() from None
    if not isinstance(payload, dict):
        raise malformed()
    return payload


def malformed() -> SignatureInvalid:
    return SignatureInvalid("signed, and yet not a payload of Slack's interactivity", code="payload_malformed")


def as_uuid(value: str | None) -> str | None:
    try:
        return str(uuid.UUID(value)) if value and len(value) == 36 else None
    except ValueError:
        return None
