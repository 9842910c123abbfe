"""Who may click in Slack, as the configuration says it: the signing secrets that prove a click, and whose clicks count."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

from service.errors import ConfigError

SECRET_CHARS_MIN = 16  # Slack's have 32
SECRETS_MAX = 4  # every click is checked against each
USERS_MAX = 500
GROUPS_MAX = 20  # each is asked of Slack, at most once a minute
# Slack's ids say by their first letter what they are of.
IDS = {"users": "UW", "groups": "S", "team": "TE", "app": "A"}
KINDS = {"users": "a user", "groups": "a user group", "team": "a workspace", "app": "an app"}
REST_OF_ID = re.compile(r"[A-Z0-9]{1,24}")


def kind_of(slack_id: str) -> str | None:
    """`users`, `groups`, `team` or `app`; None for what is no id of any of them."""
    if REST_OF_ID.fullmatch(slack_id[1:]) is None:
        return None
    return next((kind for kind, letters in IDS.items() if slack_id[0] in letters), None)


def id_of(kind: str) -> BeforeValidator:
    def check(given: Any) -> Any:
        if not isinstance(given, str) or kind_of(given) != kind:
            raise ValueError(f"not the id of {KINDS[kind]} in Slack, which looks like {IDS[kind][0]}012AB3CDE")
        return given

    return BeforeValidator(check)


class MayAct(BaseModel):
    """Whose clicks count: these users, and the members of these user groups. `team` and `app`, where given, are the
    workspace and the Slack app that a click must come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    users: tuple[Annotated[str, id_of("users")], ...] = Field(default=(), max_length=USERS_MAX)
    groups: tuple[Annotated[str, id_of("groups")], ...] = Field(default=(), max_length=GROUPS_MAX)
    team: Annotated[str, id_of("team")] | None = None
    app: Annotated[str, id_of("app")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, given: Any) -> Any:
        if not isinstance(given, dict) or set(given) - set(cls.model_fields):
            raise ValueError(f"it is a mapping of {', '.join(cls.model_fields)}, and of nothing else")
        return given

    @property
    def nobody(self) -> bool:
        return not self.users and not self.groups


def check_signing_secret(given: SecretStr) -> SecretStr:
    """For a pydantic validator: ValueError with the mend, which never shows the secret."""
    parts = signing_secrets(given)
    if not all(parts):
        raise ValueError("an empty secret between its commas")
    if len(parts) > SECRETS_MAX:
        raise ValueError(f"{len(parts)} secrets; at most {SECRETS_MAX} may be live at a time")
    for part in parts:
        if len(part) < SECRET_CHARS_MIN or not part.isascii() or not part.isprintable() or " " in part:
            raise ValueError("not a Slack signing secret; copy it whole from Basic Information of the Slack app")
    return given


def signing_secrets(given: SecretStr) -> tuple[str, ...]:
    """Several are separated by commas, newest first, while one takes another's place; all of them are accepted."""
    return tuple(part.strip() for part in given.get_secret_value().split(","))


def clicks_section(get: Callable[[str], str | None]) -> dict[str, Any]:
    """What SLACK_SIGNING_SECRET and SLACK_MAY_ACT add to the notifier that the environment describes. `get` gives a
    variable's value; raises ConfigError naming the variable, never its value."""
    section: dict[str, Any] = {}
    secret, may_act = get("SLACK_SIGNING_SECRET"), get("SLACK_MAY_ACT")
    if secret is not None:
        try:
            check_signing_secret(SecretStr(secret))
        except ValueError as exc:
            raise ConfigError(f"SLACK_SIGNING_SECRET: {exc}") from None
        section["signing_secret"] = secret
    if may_act is not None:
        section["may_act"] = may_act_of(may_act)
    return section


def may_act_of(text: str) -> dict[str, Any]:
    """The ids of users (U, W), user groups (S), at most one workspace (T, E) and one app (A), separated by commas."""
    found: dict[str, Any] = {}
    for one in text.split(","):
        kind = kind_of(one.strip())
        if kind is None:
            raise ConfigError(
                "SLACK_MAY_ACT: one of its parts is no id of Slack; write ids of users (U012AB3CDE) and user groups"
                " (S012AB3CDE), separated by commas"
            )
        if kind in ("team", "app"):
            if kind in found:
                raise ConfigError(f"SLACK_MAY_ACT: it names {KINDS[kind]} twice")
            found[kind] = one.strip()
        else:
            found.setdefault(kind, []).append(one.strip())
    return found
