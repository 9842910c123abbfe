"""What `authwatch doctor` says about clicks in Slack: the signing secret, who may, and whether Slack can reach us."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import httpx

from service.clicks import PATH
from service.clicks.people import People, clickable
from service.clicks.signature import sign
from service.errors import DeliveryFailed
from service.finding import Finding
from service.slack_settings import signing_secrets

if TYPE_CHECKING:
    from service.notify.slack import SlackConfig
    from service.runtime import Runtime

PROBE_SECONDS_MAX = 15.0
PROBE = {"type": "authwatch_probe"}  # genuine by its signature, and no click


async def of_clicks(runtime: Runtime, base: str | None) -> list[Finding]:
    """Of each Slack notifier. `base`: where the service answers, asked by a signed probe; None: not asked."""
    found: list[Finding] = []
    configs = {config.name: config for config in clickable(runtime.settings)}
    for name, section in runtime.settings.notifiers.items():
        what = f"clicks of {name}"
        config = configs.get(name)
        if config is not None:
            found.append(await of_people(People(runtime.http), what, config))
            found.append(of_request_url(f"click URL of {name}", runtime.settings.public_url))
            if base is not None:
                found.append(await of_probe(runtime.http, f"click probe of {name}", config, base))
        elif section.get("kind") == "slack":
            said = "its messages carry no buttons: set SLACK_SIGNING_SECRET, or signing_secret in the config file"
            found.append(Finding(None, what, said))
    return found


async def of_people(people: People, what: str, config: SlackConfig) -> Finding:
    may = config.may_act
    if may is None or may.nobody:
        said = "nobody is permitted, so every click is refused; set SLACK_MAY_ACT or may_act to ids of users or groups"
        return Finding(False, what, said)
    members = set(may.users)
    for group in may.groups:
        try:
            of_group = await people.members(config, group)
        except DeliveryFailed as exc:
            return Finding(False, what, f"who is in the user group {group} cannot be known: {exc} ({exc.code})")
        if not of_group:
            return Finding(False, what, f"the user group {group} has no members, or is switched off in Slack")
        members |= of_group
    return Finding(True, what, f"{len(members)} {'person' if len(members) == 1 else 'people'} may click")


def of_request_url(what: str, public_url: str | None) -> Finding:
    if public_url is None or urlsplit(public_url).scheme != "https":
        said = f"Slack must reach {PATH} over https: set AUTHWATCH_PUBLIC_URL to the address that leads here"
        return Finding(None, what, said)
    return Finding(True, what, f"the Slack app's Request URL (Interactivity & Shortcuts) must be {public_url}{PATH}")


async def of_probe(http: httpx.AsyncClient, what: str, config: SlackConfig, base: str) -> Finding:
    """A request signed as Slack would, that asks for nothing."""
    assert config.signing_secret is not None
    target, now = base.rstrip("/") + PATH, int(time.time())
    body = urlencode({"payload": json.dumps(PROBE)}).encode()
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-slack-request-timestamp": str(now),
        "x-slack-signature": sign(signing_secrets(config.signing_secret)[0], now, body),
    }
    try:
        answer = await http.post(target, content=body, headers=headers, timeout=PROBE_SECONDS_MAX)
    except httpx.HTTPError as exc:
        said = f"no answer from {target} ({type(exc).__name__}); is `authwatch serve` running there?"
        return Finding(False, what, said)
    wrong = {
        401: "401: the service runs with another signing secret, or its clock is off",
        404: "404: the service runs without a signing secret; give it the same as here",
    }
    if answer.status_code != 200:
        said = wrong.get(answer.status_code, f"{answer.status_code} from {target}; is that address Authwatch's?")
        return Finding(False, what, said)
    return Finding(True, what, "a signed probe was taken")
