"""`authwatch send`: signs and posts a documented provider event to a running service, as the provider would."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import click
import httpx

from service.errors import BadRequest, ConfigError
from service.event import new_id
from service.providers import PROVIDERS
from service.settings import Environment
from service.signatures import sign

COUNT_MAX = 1000
ANSWER_SECONDS_MAX = 15
MENDS = {
    401: "the signature was refused: is SCALEKIT_WEBHOOK_SECRET the one the service runs with?",
    404: "the source is unknown or switched off: has the service a webhook secret?",
    503: "the database cannot take it now: see `authwatch doctor`",
}


@click.command()
@click.argument("kind")
@click.option("--account-id", help="The connected account, such as ca_1.")
@click.option("--connection-id", help="The connector configuration, such as conn_1.")
@click.option("--status", help="The account status the event carries, where it carries one.")
@click.option("--url", help="The service's address; by default the one in DATA_DIR/env.")
@click.option("--source", default="scalekit", show_default=True)
@click.option("--count", type=click.IntRange(1, COUNT_MAX), default=1, show_default=True)
def send(
    kind: str,
    account_id: str | None,
    connection_id: str | None,
    status: str | None,
    url: str | None,
    source: str,
    count: int,
) -> None:
    """Sign and post a documented event of KIND (such as token.refresh_failed) to a running service."""
    variables = os.environ  # with what DATA_DIR/env adds, by `service/cli.py`
    base = url or variables.get("AUTHWATCH_URL") or variables.get("AUTHWATCH_PUBLIC_URL") or "http://127.0.0.1:8080"
    target = f"{base.rstrip('/')}/webhooks/{source}"
    bad = 0
    try:
        # trust_env off: a proxy of the environment has no business between us and our own service.
        with httpx.Client(trust_env=False, timeout=ANSWER_SECONDS_MAX) as client:
            for headers, body in prepare(kind, account_id, connection_id, status, count, variables):
                answer = client.post(target, content=body, headers=headers)
                click.echo(line_of(answer))
                if not answer.is_success:
                    bad += 1
                    click.echo(MENDS.get(answer.status_code, "not taken"), err=True)
    except (BadRequest, ConfigError) as exc:
        click.echo(f"authwatch: {exc}", err=True)
        sys.exit(2)
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        click.echo(f"no answer from {target} ({type(exc).__name__}): is the service running there?", err=True)
        sys.exit(1)
    sys.exit(1 if bad else 0)


def prepare(
    kind: str,
    account_id: str | None,
    connection_id: str | None,
    status: str | None,
    count: int,
    variables: Mapping[str, str],
) -> Iterator[tuple[dict[str, str], bytes]]:
    """Headers and body of each event, every one with an id and a time of its own.

    One at a time: signed all at once, the last of many would be stale before a slow service came to it.
    """
    text = (Environment(variables).get("SCALEKIT_WEBHOOK_SECRET") or "").split(",")[0].strip()
    if not text:
        raise ConfigError("SCALEKIT_WEBHOOK_SECRET is missing: set it, or name the service's data dir with --data-dir")
    provider = PROVIDERS["scalekit"]
    secret = provider.parse_secret(text, name="SCALEKIT_WEBHOOK_SECRET")
    for _ in range(count):
        event_id = f"evt_{new_id().replace('-', '')[:28]}"
        body = provider.example(
            kind,
            account_id=account_id,
            connection_id=connection_id,
            event_id=event_id,
            now=datetime.now(UTC),
            status=status,
        )
        timestamp = int(time.time())
        headers = {
            "content-type": "application/json",
            "webhook-id": event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(secret, event_id, timestamp, body),
        }
        yield headers, body


def line_of(answer: httpx.Response) -> str:
    try:
        said = answer.json()
    except ValueError:
        said = None
    if not isinstance(said, dict):  # another server's answer
        said = {}
    word = said.get("status") if answer.is_success else said.get("code")
    return f"{answer.status_code} {word or ''} {said.get('id') or ''}".rstrip()
