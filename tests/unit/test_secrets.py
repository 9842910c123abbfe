"""Secrets have names that stay, no key prints, and the list gives the advice a person acts on."""

from __future__ import annotations

import base64
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import ConfigError
from service.secrets import judge, table, to_json
from service.settings import SECRETS_MAX, Environment, Settings, SourceSettings, load_settings, load_sources
from service.signatures import make_secret
from service.sources import Source, fingerprint, open_source, open_sources
from service.store.secrets import WAITING_MAX, SecretUses, Use

NEW, OLD, OTHER = make_secret(), make_secret(), make_secret()
# 24 bytes: base64 without padding, and without + and / a word of letters and digits.
PADLESS = "whsec_" + base64.b64encode(b"authwatch test secret 24").decode()
KNOWN = "whsec_" + "QXV0aHdhdGNoIHRlc3Qgc2VjcmV0IDAwMDAwMDAwMDI="
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DATABASE = "postgresql://user:pw@127.0.0.1/authwatch"


def opened(**variables: str) -> dict[str, Source]:
    return open_sources(load_sources(Environment(variables)))


def of_file(tmp_path: Path, text: str, **variables: str) -> dict[str, Source]:
    (tmp_path / "config.yml").write_text(text)
    return opened(AUTHWATCH_CONFIG=str(tmp_path / "config.yml"), **variables)


def mistake(tmp_path: Path, text: str, **variables: str) -> str:
    with pytest.raises(ConfigError) as caught:
        of_file(tmp_path, text, **variables)
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value)
    assert not any(form in shown for secret in (NEW, OLD) for form in forms(secret))
    return str(caught.value)


def forms(secret: str) -> list[str]:
    """A key as anyone might write it."""
    text = secret.removeprefix("whsec_")
    key = base64.b64decode(text)
    return [secret, text, text.rstrip("="), base64.urlsafe_b64encode(key).decode().rstrip("="), key.hex(), repr(key)]


def names(sources: dict[str, Source], name: str = "scalekit") -> list[str]:
    return [secret.name for secret in sources[name].secrets]


def test_a_name_from_the_environment_stays_with_its_secret_when_a_new_one_is_put_before_it() -> None:
    [old] = names(opened(SCALEKIT_WEBHOOK_SECRET=OLD))
    assert names(opened(SCALEKIT_WEBHOOK_SECRET=f"{NEW},{OLD}"))[1] == old
    assert old == fingerprint(base64.b64decode(OLD.removeprefix("whsec_")))
    assert not any(old in form for form in forms(OLD))


def test_names_from_the_file_values_and_files(tmp_path: Path) -> None:
    (tmp_path / "old").write_text(f"{OLD}\n")
    text = f"""\
sources:
  tickets:
    secrets:
    - {{name: 2026-11-24, value: "${{NEW}}"}}
    - {{name: 2026, file: {tmp_path}/old}}
    - {OTHER}
"""
    sources = of_file(tmp_path, text, NEW=NEW)
    assert names(sources, "tickets")[:2] == ["2026-11-24", "2026"]
    assert len(names(sources, "tickets")[2]) == 8
    keys = [base64.b64decode(text.removeprefix("whsec_")) for text in (NEW, OLD, OTHER)]
    assert [secret.key for secret in sources["tickets"].secrets] == keys


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ("[{name: a, value: '${NEW}'}, {name: a, value: '${OLD}'}]", "sources.one: two secrets are named a; give each"),
        ("[{name: a, value: '${NEW}'}, '${NEW}']", "sources.one: the secret a is there twice"),
        ("[{name: a, value: '${NEW}', file: x}]", "config.yml: sources.one.secrets.0: give either value"),
        ("[{name: a}]", "config.yml: sources.one.secrets.0: give either value or file"),
        ("[{nam: a, value: '${NEW}'}]", 'config.yml: unknown key "sources.one.secrets.0.nam"; did you mean "name"?'),
        ("[{name: 'a b', value: '${NEW}'}]", "config.yml: sources.one.secrets.0.name: a secret's name is"),
        ("[{name: '${START}', value: '${KNOWN}'}]", "sources.one: the name of secret 1 is a part of the secret"),
        ("[{name: a, file: /nowhere/x}]", "sources.one.secrets: the file of a cannot be read: FileNotFoundError"),
        ("[{name: a, value: whsec_c2hvcnQ=}]", "the webhook secret a has 5 bytes; it needs 24 to 64"),
    ],
)
def test_what_cannot_be_right_is_named(tmp_path: Path, secrets: str, said: str) -> None:
    text = f"sources: {{one: {{secrets: {secrets}}}}}"
    assert mistake(tmp_path, text, NEW=NEW, OLD=OLD, KNOWN=KNOWN, START=KNOWN[6:20]).startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "sources: {{one: {{secrets: [{{{secret}}}]}}}}",
        "sources:\n  one:\n    secrets:\n    - {secret}:\n",
        "sources:\n  one:\n    secrets:\n    - name: a\n      {secret}: x\n",
        "sources: {{one: {{secrets: [a], {secret}: 1}}}}",
        "sources: {{{secret}: {{secrets: [a]}}}}",
        "sources: {{{secret}: 1}}",
        "{secret}: 1",
        "retention: {{{secret}: 1d}}",
        "sources: {{one: {{provider: {secret}, secrets: ['${{NEW}}']}}}}",
        "sources: {{one: {{secrets: [{{name: {secret}, value: '${{NEW}}'}}]}}}}",
        "sources: {{one: {{secrets: ['${{{secret}}}']}}}}",
        "!{secret}!x a",
        "sources: {{one: {{secrets: [a, secrets: [{secret}]}}}}",
    ],
)
@pytest.mark.parametrize("bare", [False, True])
def test_a_slip_of_yaml_that_makes_a_secret_a_key_shows_it_nowhere(tmp_path: Path, text: str, bare: bool) -> None:
    # A name without the prefix is what it says it is.
    named = bare and ("{{name: {secret}" in text or "${{{secret}}}" in text or "sources: {{{secret}: {{" in text)
    for secret in () if named else (OLD, PADLESS):
        said = mistake(tmp_path, text.format(secret=secret.removeprefix("whsec_") if bare else secret), NEW=NEW)
        assert not any(form[:16] in said for form in forms(secret))


def test_the_same_key_twice_in_the_environment_is_named_by_its_fingerprint() -> None:
    [name] = names(opened(SCALEKIT_WEBHOOK_SECRET=OLD))
    with pytest.raises(ConfigError, match=f"sources.scalekit: the secret {name} is there twice"):
        opened(SCALEKIT_WEBHOOK_SECRET=f"{OLD},{OLD}")
    with pytest.raises(ConfigError, match=f"at most {SECRETS_MAX} may be live"):
        opened(SCALEKIT_WEBHOOK_SECRET=",".join(make_secret() for _ in range(SECRETS_MAX + 1)))


def test_the_files_that_were_read_are_told_with_their_content(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(OLD)
    env = Environment({"SCALEKIT_WEBHOOK_SECRET_FILE": str(tmp_path / "secret")})
    load_sources(env)
    before = dict(env.files)
    (tmp_path / "secret").write_text(NEW)
    load_sources(env)
    assert list(env.files) == list(before) == [tmp_path / "secret"]
    assert env.files != before


def test_no_key_is_in_what_prints_of_settings_and_sources(tmp_path: Path) -> None:
    (tmp_path / "old").write_text(OLD)
    (tmp_path / "config.yml").write_text(
        f"sources: {{one: {{secrets: [{{name: a, value: {NEW}}}, {{name: b, file: {tmp_path}/old}}]}}}}"
    )
    settings: Settings = load_settings({"DATABASE_URL": DATABASE, "AUTHWATCH_CONFIG": str(tmp_path / "config.yml")})
    sources = open_sources(settings.sources)
    shown = repr(settings) + str(settings) + settings.model_dump_json() + repr(sources) + str(sources["one"].secrets)
    assert not any(form in shown for secret in (NEW, OLD) for form in forms(secret))


def use(name: str, first: timedelta, last: timedelta, source: str = "scalekit") -> Use:
    return Use(source, f"key of {name}", name, NOW - first, NOW - last, 7)


def live(*names: str) -> dict[str, dict[str, str]]:
    return {"scalekit": {name: f"key of {name}" for name in names}}


@pytest.mark.parametrize(
    ("new", "old", "of_new", "of_old", "safe"),
    [
        (None, None, "never used: is it registered with the provider?", "never used: is it registered with the provider?", (False, False)),
        (
            (timedelta(days=4), timedelta(minutes=2)),
            (timedelta(days=90), timedelta(days=3, hours=2)),
            "in use, last used 2 minutes ago",
            "last used 3 days ago; the newer one is in use since 2026-11-20 12:00: safe to remove",
            (False, True),
        ),
        (
            (timedelta(hours=2), timedelta(0)),
            (timedelta(days=90), timedelta(hours=1)),
            "in use, last used less than a minute ago",
            "last used 1 hour ago; the newer one is in use since 2026-11-24 10:00: wait until this one was quiet for a day",
            (False, False),
        ),
        (
            None,
            (timedelta(days=90), timedelta(hours=1)),
            "never used; an older one still is: is it registered with the provider?",
            "in use, last used 1 hour ago; the newer one was never used",
            (False, False),
        ),
        (
            (timedelta(days=9), timedelta(days=5)),
            (timedelta(days=90), timedelta(hours=1)),
            "last used 5 days ago; an older one was used since: has the provider gone back to it?",
            "in use, last used 1 hour ago",
            (False, False),
        ),
        (
            (timedelta(days=9), timedelta(days=5)),
            None,
            "in use, last used 5 days ago",
            "never used, and a newer one is in use since 2026-11-15 12:00: safe to remove",
            (False, True),
        ),
        (
            (timedelta(hours=23), timedelta(0)),
            None,
            "in use, last used less than a minute ago",
            "never used; a newer one is in use since 2026-11-23 13:00: wait until it was for a day",
            (False, False),
        ),
        (
            (timedelta(hours=1), timedelta(0)),
            (timedelta(days=90), timedelta(days=2)),
            "in use, last used less than a minute ago",
            "last used 2 days ago; the newer one is in use since 2026-11-24 11:00: wait until this one was quiet for a day",
            (False, False),
        ),
    ],
)  # fmt: skip
def test_the_advice(
    new: tuple[timedelta, timedelta] | None,
    old: tuple[timedelta, timedelta] | None,
    of_new: str,
    of_old: str,
    safe: tuple[bool, bool],
) -> None:
    uses = [use(name, *times) for name, times in (("new", new), ("old", old)) if times]
    lines = judge(live("new", "old"), uses, NOW)
    assert [line.advice for line in lines] == [of_new, of_old]
    assert tuple(line.safe_to_remove for line in lines) == safe
    assert [line.position for line in lines] == [1, 2]


def test_what_is_no_longer_configured_is_listed_after_the_live_ones() -> None:
    uses = [use("gone", timedelta(days=90), timedelta(days=3)), use("x", timedelta(2), timedelta(1), source="removed")]
    lines = judge(live("new"), uses, NOW)
    assert [(line.source, line.name, line.position) for line in lines] == [
        ("scalekit", "new", 1),
        ("scalekit", "gone", None),
        ("removed", "x", None),
    ]
    assert lines[1].advice == "no longer configured; last used 3 days ago"
    assert table(lines)[2].endswith("  no longer configured; last used 3 days ago")
    assert to_json(lines[0])["last_used_at"] is None


def test_the_table_can_be_read_and_shows_no_key() -> None:
    uses = [Use("scalekit", "key of old", "old", NOW - timedelta(days=90), NOW - timedelta(minutes=5), 1234567)]
    assert table(judge(live("2026-11", "old"), uses, NOW)) == [
        "source    secret   place  first used (UTC)  last used (UTC)      uses  advice",
        "scalekit  2026-11      1  -                 -                       0  never used; an older one still is: is it"
        " registered with the provider?",
        "scalekit  old          2  2026-08-26 12:00  2026-11-24 11:55  1234567  in use, last used 5 minutes ago; the newer"
        " one was never used",
    ]


def test_slots_whose_content_moves_at_a_rotation_keep_their_keys_times() -> None:
    """`current` and `previous`: the key in use moved to `previous`, and is not yet safe to remove."""
    moved = {"scalekit": {"current": "key of new", "previous": "key of old"}}
    uses = [Use("scalekit", "key of old", "current", NOW - timedelta(days=90), NOW - timedelta(minutes=5), 7)]
    current, previous = judge(moved, uses, NOW)
    assert (current.uses, previous.uses, previous.safe_to_remove) == (0, 7, False)
    assert previous.advice == "in use, last used 5 minutes ago; the newer one was never used"
    gone = judge({"scalekit": {"current": "key of new"}}, uses, NOW)[1]
    assert (gone.name, gone.position) == ("current (key of old)", None)


def test_uses_are_counted_taken_once_and_put_back_whole() -> None:
    uses = SecretUses()
    sources = {
        name: open_source(name, SourceSettings.model_validate({"secrets": [{"name": secret, "value": OLD}]}))
        for name, secret in (("a", "two"), ("b", "one"))
    }
    key = fingerprint(base64.b64decode(OLD.removeprefix("whsec_")))
    for minutes in (0, 2, 1):
        uses.note(sources["b"], "one", NOW + timedelta(minutes=minutes))
    uses.note(sources["a"], "two", NOW)
    taken = uses.take()
    assert [(each.source, each.count) for each in taken] == [("a", 1), ("b", 3)]
    assert uses.take() == []
    uses.note(sources["b"], "one", NOW + timedelta(minutes=9))
    uses.put_back(taken)
    assert uses.take()[1] == Use("b", key, "one", NOW, NOW + timedelta(minutes=9), 4)
    uses.put_back([Use("b", str(number), "one", NOW, NOW, 1) for number in range(WAITING_MAX + 5)])
    assert len(uses.take()) == WAITING_MAX
