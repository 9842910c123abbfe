"""No door gives a signing key away: API, metrics, OpenAPI, problems, logs, the commands, the database itself."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import psycopg
from psycopg import sql

from service.api.routes import CALLS
from service.signatures import make_secret
from tests.conftest import ADMIN_TOKEN
from tests.end_to_end.running import COMMAND, OURS, RULES, Running, until
from tests.end_to_end.test_api import address
from tests.make_requests import event_body, signed
from tests.unit.test_secrets import forms

DOOR = "/webhooks/tickets"


def every_form(secret: str) -> list[str]:
    """As text, and as text that was encoded once more; halves too, so that a key cut in two is found."""
    text = secret.removeprefix("whsec_")
    key = base64.b64decode(text)
    twice = [base64.b64encode(secret.encode()).decode().rstrip("="), secret.encode().hex()]
    return [*forms(secret), *twice, text[:22], text[22:40], key[:16].hex(), key[16:].hex(), key.hex().upper()]


def command(place: Running, *words: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        [COMMAND, *words],
        cwd=place.folder,
        env={**clean, **place.environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def everything_stored(database_url: str) -> str:
    shown: list[str] = []
    with psycopg.connect(database_url) as conn:
        tables = conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        ).fetchall()
        assert ("secret_uses",) in tables
        for (table,) in tables:
            rows = conn.execute(sql.SQL("SELECT t::text FROM {} AS t LIMIT 1000").format(sql.Identifier(table)))
            shown.extend(row[0] for row in rows)
    return "\n".join(shown)


async def test_no_door_shows_a_key(database_url: str, tmp_path: Path) -> None:
    named, nameless, in_file = make_secret(), make_secret(), make_secret()
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "all.yml").write_text(RULES)
    (tmp_path / "third").write_text(in_file)
    config = tmp_path / "config.yml"
    good = f'sources: {{tickets: {{secrets: [{{name: new, value: "{named}"}}, "{nameless}", {{name: third, file: {tmp_path}/third}}]}}}}'
    config.write_text(good)
    place = Running(
        tmp_path,
        {
            "DATABASE_URL": database_url,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_CONFIG": str(config),
            "AUTHWATCH_RULES": str(tmp_path / "rules"),
            "AUTHWATCH_LOG_LEVEL": "DEBUG",
        },
    )
    seen: dict[str, str] = {}
    try:
        place.start("serve", "worker")
        await place.ready()
        async with place.client() as client:
            ids = []
            for secret in (named, nameless, in_file):
                body = event_body()
                answer = await client.post(DOOR, content=body, headers=signed(body, secret))
                assert answer.status_code == 202, answer.text
                ids.append(answer.json()["id"])
            refused = [
                signed(b"{}", make_secret()),
                {"webhook-id": "x", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"},
                signed(b"{}", named, at=1),
                {},
            ]
            for number, headers in enumerate(refused):
                answer = await client.post(DOOR, content=b"{}", headers=headers)
                assert answer.status_code == 401
                seen[f"problem {number}"] = answer.text + str(answer.headers)
            for call in CALLS:
                if call.media_type == "text/event-stream":
                    continue  # an answer without end
                for event_id in ids:
                    url = call.path.replace("{id}", event_id) if "events" in call.path else address(call.path)
                    answer = await client.request(call.method, url)
                    seen[f"{call.method} {url}"] = answer.text + str(answer.headers)
            for path in ("/openapi.json", "/metrics", "/webhooks/nothing", "/v1/events?limit=x"):
                seen[path] = (await client.get(path)).text
            config.write_text(good.replace(named, named[:30]))

            async def said() -> bool:
                return "sources.not_taken" in place.whole_logs()

            await until(said, 20, place.logs)
            seen["alerts"] = (await client.get("/v1/alerts")).text
            seen["secrets list, broken"] = command(place, "secrets", "list")
            assert "the webhook secret new " in seen["secrets list, broken"]
            config.write_text(good)
            seen["doctor"] = command(place, "doctor", "--url", place.url)
    finally:
        place.stop()
    for words in (("secrets", "list"), ("secrets", "list", "--json"), ("tokens", "list"), ("rules", "check")):
        seen[" ".join(words)] = command(place, *words)
    for part in place.processes:
        seen[part] = (tmp_path / f"{part}.log").read_text()
    seen["database"] = everything_stored(database_url)

    assert "receipt" in " ".join(seen)
    assert '"result": "verified"' in seen[f"GET /v1/events/{ids[2]}/receipt"]
    assert "third" in seen["secrets list"]
    for door, shown in seen.items():
        for secret in (named, nameless, in_file):
            for form in every_form(secret):
                assert form not in shown, door


def test_the_walk_would_find_a_key() -> None:
    secret = make_secret()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    for shown in (f"x{secret}", f"{key!r}", key.hex(), base64.urlsafe_b64encode(key).decode(), secret[6:30]):
        assert any(form in shown for form in every_form(secret))
