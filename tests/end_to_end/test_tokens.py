"""`authwatch tokens` on a real database: shown once, hashed at rest, every change audited."""

from __future__ import annotations

import psycopg
import pytest
from click.testing import CliRunner, Result

from service import tokens
from service.errors import ConfigError
from service.store.tokens import SCOPES, digest
from tests.conftest import Servers


def run(database_url: str, *words: str) -> Result:
    return CliRunner(env={"DATABASE_URL": database_url}).invoke(tokens.tokens, words)


def rows(database_url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(database_url) as conn:
        return conn.execute(query).fetchall()


def test_a_token_is_shown_once_and_only_its_hash_is_kept(database_url: str) -> None:
    made = run(database_url, "create", "--name", "my agent", "--scope", "read", "--scope", "write")
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert token.startswith("aw_")
    assert made.stdout == f"{token}\n"
    assert "not shown again" in made.stderr
    assert token not in made.stderr
    [(token_id, kept)] = rows(database_url, "SELECT id, token_sha256 FROM tokens")
    assert kept == digest(token)
    listed = run(database_url, "list").stdout
    heading, line = listed.splitlines()
    assert heading.split() == ["id", "name", "scopes", "created", "last", "used", "revoked"]
    assert line.startswith(str(token_id))
    assert "my agent" in line
    assert "read,write" in line
    assert line.endswith("-")
    assert token not in listed
    assert digest(token).hex() not in listed


def test_every_change_is_an_audit_entry_of_the_same_transaction(database_url: str) -> None:
    run(database_url, "create", "--name", "a", "--scope", "siem")
    [(token_id,)] = rows(database_url, "SELECT id FROM tokens")
    revoked = run(database_url, "revoke", str(token_id))
    assert revoked.exit_code == 0
    assert not run(database_url, "list").stdout.splitlines()[1].endswith("-")
    again = run(database_url, "revoke", str(token_id))
    assert (again.exit_code, f"no live token {token_id}" in again.stderr) == (1, True)
    audited = rows(
        database_url, "SELECT kind, details->>'actor', details->>'action', event_id FROM events ORDER BY position"
    )
    assert audited == [
        ("audit", "cli", "token.create", token_id),
        ("audit", "cli", "token.revoke", token_id),
    ]


def test_an_unknown_scope_is_answered_with_the_known_ones(database_url: str) -> None:
    said = run(database_url, "create", "--name", "a", "--scope", "everything")
    assert said.exit_code == 2
    for scope in SCOPES:
        assert f"'{scope}'" in said.stderr
    assert run(database_url, "create", "--name", "a").exit_code == 2
    assert rows(database_url, "SELECT 1 FROM tokens") == []
    assert tokens.SCOPES == SCOPES


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[2J", "\udcff", "x" * 101])
def test_a_name_nobody_could_read_is_refused(database_url: str, name: str) -> None:
    assert run(database_url, "create", "--name", name, "--scope", "read").exit_code == 2


def test_a_database_without_our_tables_says_what_to_run(servers: Servers) -> None:
    said = run(servers.database_url, "list")
    assert isinstance(said.exception, ConfigError)
    assert "run `authwatch migrate`" in str(said.exception)


def test_without_a_database_the_setting_is_named() -> None:
    said = CliRunner(env={"DATABASE_URL": None}).invoke(tokens.tokens, ["list"])
    assert isinstance(said.exception, ConfigError)
    assert str(said.exception).startswith("DATABASE_URL is missing")
