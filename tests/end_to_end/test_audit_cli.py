"""`authwatch audit` on a real database, and the commands of docs/audit.md as a reader would type them."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from service import audit, audit_cli, tokens
from service.errors import ConfigError
from service.migrate import downgrade
from service.store import audit_entries

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "audit.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]


def run(database_url: str, *words: str) -> Result:
    return CliRunner(env={"DATABASE_URL": database_url}).invoke(audit_cli.audit, words)


def make_tokens(database_url: str, count: int = 2) -> None:
    for n in range(count):
        made = CliRunner(env={"DATABASE_URL": database_url}).invoke(
            tokens.tokens, ["create", "--name", f"agent {n}", "--scope", "read"]
        )
        assert made.exit_code == 0, made.output


def execute(database_url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database_url) as conn:
        done = conn.execute(statement)
        return done.fetchall() if done.description else []


def test_a_sound_chain_is_one_sentence(database_url: str) -> None:
    assert run(database_url, "verify").stdout == "sound: the chain has no entry yet\n"
    make_tokens(database_url)
    seals = execute(database_url, "SELECT details->'chain'->>'hash' FROM events ORDER BY position")
    done = run(database_url, "verify")
    assert done.exit_code == 0, done.output
    assert re.fullmatch(
        r"sound: 2 entries, from number 1 \(\S+Z, ([0-9a-f]{64})\) to number 2 \(\S+Z, ([0-9a-f]{64})\)\n", done.stdout
    )
    assert [found for (found,) in seals] == re.findall(r"[0-9a-f]{64}", done.stdout)
    assert run(database_url, "verify", "--expect", str(seals[0][0])).exit_code == 0


def test_a_broken_one_is_the_first_thing_that_is_wrong(database_url: str) -> None:
    make_tokens(database_url, 3)
    [(position,)] = execute(
        database_url,
        "UPDATE events SET details = jsonb_set(details, '{reason}', '\"x\"') WHERE details->'chain'->>'number' = '2'"
        " RETURNING position",
    )
    done = run(database_url, "verify")
    assert done.exit_code == 1
    assert done.stdout.startswith(f"broken: at position {position}, received 20")
    assert "entry 2 is not what was sealed" in done.stdout
    assert done.stdout.endswith("[changed]; 1 entries before it are sound\n")


def test_an_expected_hash_that_is_not_there_and_one_that_is_none(database_url: str) -> None:
    make_tokens(database_url)
    done = run(database_url, "verify", "--expect", "a" * 64)
    assert (done.exit_code, "[expected_missing]" in done.stdout) == (1, True)
    assert "64 hexadecimal digits" in run(database_url, "verify", "--expect", "abc").output
    assert "a day or a time" in run(database_url, "verify", "--since", "monday").output


def test_since_and_progress(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tokens(database_url)
    monkeypatch.setattr(audit_cli, "PROGRESS_SECONDS", 0.0)
    yesterday = f"{datetime.now(UTC) - timedelta(days=1):%Y-%m-%d}"
    done = run(database_url, "verify", "--since", yesterday)
    assert (done.exit_code, done.stdout[:16]) == (0, "sound: 2 entries")
    assert re.fullmatch(r"2 entries, up to \S+Z\n", done.stderr)


def test_the_list_says_who_did_what_to_what_newest_first(database_url: str) -> None:
    make_tokens(database_url)
    lines = run(database_url, "list").stdout.splitlines()
    assert [line.split("  ")[1:3] for line in lines] == [["cli", "token.create"]] * 2
    assert [line.split("  ")[4] for line in lines] == ["agent 1: read", "agent 0: read"]
    subject = lines[1].split("  ")[3]
    assert run(database_url, "list", "--subject", subject).stdout.splitlines() == [lines[1]]
    assert run(database_url, "list", "--limit", "1").stdout.splitlines() == [lines[0]]


def test_a_database_from_before_the_chain_is_one_sentence(database_url: str) -> None:
    downgrade(database_url, "0016_heard")
    result = run(database_url, "verify")
    assert isinstance(result.exception, ConfigError)
    assert "run `authwatch migrate`" in str(result.exception)


def test_the_commands_of_the_documentation(database_url: str) -> None:
    make_tokens(database_url)
    execute(
        database_url,
        "INSERT INTO events (id, source, origin, type, kind, occurred_at, received_at) VALUES"
        " (gen_random_uuid(), 'authwatch', 'authwatch', 'audit', 'audit', now(), now())",
    )
    assert len(COMMANDS) == 4
    ends = []
    for command in COMMANDS:
        program, group, *words = shlex.split(command)
        assert (program, group) == ("authwatch", "audit")
        ends.append(run(database_url, *words).exit_code)
    assert ends == [1, 0, 0, 0]
    done = run(database_url, "verify")
    assert (done.exit_code, "1 of other processes were vouched for" in done.stdout) == (0, True)


def test_the_documentation_names_every_check_and_every_hashed_field() -> None:
    source = Path(str(audit.__file__)).read_text()
    checks = set(re.findall(r'(?:Broken|broken)\(\s*(?:event, )?"(\w+)"', source))
    assert checks
    assert {check for check in checks if f"`{check}`" not in DOCS} == set()
    assert {name for name in (*audit.SHOWN, *audit.TIMES) if f"`{name}`" not in DOCS} == set()
    assert audit_entries.ADOPTED_AT_ONCE_MAX <= audit.UNSEALED_MAX
