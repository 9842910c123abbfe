"""Settings: every mistake is one sentence that names the setting and its mend, and never shows the value."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import ConfigError
from service.runtime import open_plug_in
from service.settings import CONFIG_BYTES_MAX, Settings, load_settings
from service.sinks import SINKS
from service.sources import open_source
from tests.conftest import SECRET

HIDDEN = "hidden-value-0123456789"
DATABASE = {"DATABASE_URL": "postgresql://user:pw@127.0.0.1/authwatch"}


def load(**variables: str) -> Settings:
    return load_settings({**DATABASE, **variables})


def mistake(**variables: str) -> str:
    """The sentence. Neither it nor its traceback, causes included, shows the hidden value."""
    with pytest.raises(ConfigError) as caught:
        load(**variables)
    assert HIDDEN not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def of_file(tmp_path: Path, text: str | bytes, **variables: str) -> str:
    path = tmp_path / "config.yml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return mistake(AUTHWATCH_CONFIG=str(path), **variables)


def test_without_a_database_the_way_out_is_named() -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL is missing: set it, or run `authwatch up`"):
        load_settings({})


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("DATABASE_URL", f"mysql://u:{HIDDEN}@h/db", "postgresql://host"),
        ("DATABASE_URL", HIDDEN, "postgresql://host"),
        ("DATABASE_URL", f"postgresql://u:{HIDDEN}@h:port/db", "postgresql://host"),
        ("DATABASE_URL", f"postgresql://u:{HIDDEN}@[::1/db", "postgresql://host"),
        ("REDIS_URL", f"http://:{HIDDEN}@h", "redis://host"),
        ("REDIS_URL", f"redis://:{HIDDEN}@h:0", "redis://host"),
        ("AUTHWATCH_PUBLIC_URL", f"{HIDDEN}.example.com", "https://host"),
        ("AUTHWATCH_HEARTBEAT_URL", f"ftp://h/{HIDDEN}", "https://host"),
        ("SLACK_API_URL", f"https:///{HIDDEN}", "https://host"),
        ("SPLUNK_HEC_URL", f"https://{HIDDEN}:99999", "https://host"),
    ],
)
def test_a_url_that_cannot_be_right_is_named_with_its_form(name: str, value: str, form: str) -> None:
    others = {"SLACK_BOT_TOKEN": "xoxb-1", "SLACK_CHANNEL": "C1", "SPLUNK_HEC_TOKEN": "t-1"}
    assert mistake(**others | {name: value}) == f"{name} is not a URL of the form {form}"


def test_the_public_url_holds_no_password_because_it_is_shown_to_people() -> None:
    said = mistake(AUTHWATCH_PUBLIC_URL=f"https://me:{HIDDEN}@authwatch.example.com")
    assert said == "AUTHWATCH_PUBLIC_URL must hold no user and no password; it is shown in messages"


@pytest.mark.parametrize(
    "name",
    [
        "DATABASE_URL",
        "REDIS_URL",
        "AUTHWATCH_CONFIG",
        "AUTHWATCH_RULES",
        "AUTHWATCH_ADMIN_TOKEN",
        "AUTHWATCH_PUBLIC_URL",
        "AUTHWATCH_HEARTBEAT_URL",
        "SCALEKIT_WEBHOOK_SECRET",
        "SCALEKIT_ENV_URL",
        "SCALEKIT_CLIENT_ID",
        "SCALEKIT_CLIENT_SECRET",
        "SLACK_BOT_TOKEN",
        "SLACK_CHANNEL",
        "SLACK_SIGNING_SECRET",
        "SLACK_MAY_ACT",
        "SLACK_API_URL",
        "SPLUNK_HEC_URL",
        "SPLUNK_HEC_TOKEN",
    ],
)
@pytest.mark.parametrize("value", ["", "  "])
def test_a_variable_that_is_set_and_empty_is_a_mistake(name: str, value: str) -> None:
    assert mistake(**{name: value}) == f"{name} is set but empty; give it a value or unset it"


def test_a_short_admin_token_is_refused() -> None:
    assert mistake(AUTHWATCH_ADMIN_TOKEN="seven77") == "AUTHWATCH_ADMIN_TOKEN is too short: at least 8 characters"
    assert load(AUTHWATCH_ADMIN_TOKEN="eight888").admin_token is not None


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"SLACK_BOT_TOKEN": HIDDEN}, "SLACK_CHANNEL"),
        ({"SLACK_CHANNEL": "C123"}, "SLACK_BOT_TOKEN"),
        ({"SPLUNK_HEC_TOKEN": HIDDEN}, "SPLUNK_HEC_URL"),
        ({"SPLUNK_HEC_URL": "https://splunk.example.com:8088"}, "SPLUNK_HEC_TOKEN"),
        (
            {"SCALEKIT_CLIENT_SECRET": HIDDEN, "SCALEKIT_CLIENT_ID": "skc_1"},
            "SCALEKIT_ENV_URL",
        ),
        ({"SCALEKIT_ENV_URL": "https://e.example.com"}, "SCALEKIT_CLIENT_ID, SCALEKIT_CLIENT_SECRET"),
    ],
)
def test_a_variable_without_its_partner_names_the_partner(given: dict[str, str], missing: str) -> None:
    assert missing in mistake(**given)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (f"{SECRET},", "SCALEKIT_WEBHOOK_SECRET has an empty secret between its commas"),
        (f"{SECRET},,{SECRET}", "SCALEKIT_WEBHOOK_SECRET has an empty secret between its commas"),
    ],
)
def test_an_empty_secret_in_the_list_is_a_mistake(value: str, said: str) -> None:
    assert mistake(SCALEKIT_WEBHOOK_SECRET=value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (HIDDEN, "does not start with whsec_"),
        ("whsec_", "has 0 bytes; it needs 24 to 64"),
        ("whsec_c2hvcnQ=", "has 5 bytes; it needs 24 to 64"),
        (f"whsec_{HIDDEN}!", "is not base64 after whsec_"),
        (f"{SECRET},whsec_", "scalekit-2 has 0 bytes"),
    ],
)
def test_a_webhook_secret_that_protects_nothing_stops_the_start(value: str, said: str) -> None:
    section = load(SCALEKIT_WEBHOOK_SECRET=value).sources["scalekit"]
    with pytest.raises(ConfigError, match=said) as caught:
        open_source("scalekit", section)
    assert HIDDEN not in "".join(traceback.format_exception(caught.value))


def test_several_secrets_are_kept_in_their_order_and_never_print() -> None:
    second = SECRET[:-6] + "abcde="
    settings = load(SCALEKIT_WEBHOOK_SECRET=f"{SECRET} , {second}")
    assert [secret.get_secret_value() for secret in settings.sources["scalekit"].secrets] == [SECRET, second]
    assert SECRET not in repr(settings)
    assert "pw" not in repr(settings.database_url)


def test_without_a_secret_the_source_is_switched_off() -> None:
    assert load().sources == {}


def test_a_value_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    settings = load(SCALEKIT_WEBHOOK_SECRET_FILE=str(tmp_path / "secret"))
    assert settings.sources["scalekit"].secrets[0].get_secret_value() == SECRET


def test_a_file_that_cannot_give_the_value_is_named_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + HIDDEN.encode())
    name = "SCALEKIT_WEBHOOK_SECRET_FILE"
    said = mistake(**{name: str(tmp_path / "absent")})
    assert said == "SCALEKIT_WEBHOOK_SECRET_FILE cannot be read: FileNotFoundError"
    assert mistake(**{name: str(tmp_path / "empty")}) == f"the file that {name} names is empty"
    assert mistake(**{name: str(tmp_path / "binary")}) == f"{name} cannot be read: UnicodeDecodeError"


def test_the_config_file_takes_secrets_from_the_environment_and_from_files(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    (tmp_path / "config.yml").write_text(
        """\
sources:
  tickets: {secrets: ["${NEW}", "${OLD}"]}
sinks:
  siem: {kind: splunk_hec, url: "https://${HOST}:8088", token: "${TOKEN}"}
"""
    )
    settings = load(
        AUTHWATCH_CONFIG=str(tmp_path / "config.yml"),
        NEW=SECRET,
        OLD=SECRET,
        HOST="splunk.example.com",
        TOKEN_FILE=str(tmp_path / "token"),
    )
    assert list(settings.sources) == ["tickets"]
    assert settings.sinks["siem"]["url"] == "https://splunk.example.com:8088"
    assert settings.sinks["siem"]["token"] == "from-a-file"


def test_a_reference_to_what_is_not_set_is_a_mistake(tmp_path: Path) -> None:
    said = of_file(tmp_path, 'sources: {one: {secrets: ["${NOT_THERE}"]}}')
    assert said == "the config file asks for ${NOT_THERE}, which is not set"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sorces: {}", 'config.yml: unknown key "sorces"; did you mean "sources"?'),
        ("zzz: {}", 'config.yml: unknown key "zzz"; known: sources, notifiers, sinks, orchestrators'),
        (
            f"sources: {{one: {{secret: [{HIDDEN}], secrets: [a]}}}}",
            'config.yml: unknown key "sources.one.secret"; did you mean "secrets"?',
        ),
        (f"sources: {{one: {{secrets: {HIDDEN}}}}}", "config.yml: sources.one.secrets: Input should be a valid tuple"),
        ("sources: {one: {}}", "config.yml: sources.one.secrets: Field required"),
        ("sources: {one: {secrets: []}}", "config.yml: sources.one.secrets: Tuple should have at least 1 item"),
        (
            f"sources: {{one: {{secrets: [a], verify_with: {HIDDEN}}}}}",
            "config.yml: sources.one.verify_with: Input should be 'own' or 'sdk'",
        ),
        ('sources: {"a/b": {secrets: [a]}}', "config.yml: sources.a/b: a source's name is"),
        ('sources: {"a:b": {secrets: [a]}}', "config.yml: sources.a:b: a source's name is"),
        (f"- {HIDDEN}", "config.yml: it must be a mapping of sources, notifiers, sinks, orchestrators"),
        (f"{HIDDEN}", "config.yml: it must be a mapping of sources, notifiers, sinks, orchestrators"),
        (f"sinks: {HIDDEN}", "config.yml: sinks: Input should be a valid dictionary"),
    ],
)
def test_a_mistake_in_the_config_file_is_named_with_the_nearest_word(tmp_path: Path, text: str, said: str) -> None:
    assert of_file(tmp_path, text).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"a: {HIDDEN}\na: {HIDDEN}\n", "config.yml:2:1: not YAML: a key is given twice"),
        (f"token: *{HIDDEN}\n", "config.yml:1:8: not YAML: an alias of something that is not there"),
        (f"a: !!timestamp {HIDDEN}\n", "config.yml:1:4: not YAML: a value that is not what its tag says"),
        (f"a: !!int {HIDDEN}\n", "config.yml: not YAML: a value that is not what its tag says"),
        (f"token: '{HIDDEN}' x\n", "config.yml:1:"),
        (f"token: '{HIDDEN}\n", "config.yml:2:1: not YAML: found unexpected end of stream"),
        (b"a: \x80" + HIDDEN.encode(), "config.yml: not YAML: it is not UTF-8 text"),
        ("[" * 3_000, "config.yml: not YAML: it nests too deep"),
        ("a: &a [*a]", "config.yml: not YAML: it nests too deep"),
    ],
)
def test_a_config_file_that_is_not_yaml_names_its_line_and_not_its_words(
    tmp_path: Path, text: str | bytes, said: str
) -> None:
    assert of_file(tmp_path, text).startswith(said)


def test_a_config_file_that_is_absent_or_huge_is_refused(tmp_path: Path) -> None:
    assert mistake(AUTHWATCH_CONFIG=str(tmp_path / "x.yml")) == "AUTHWATCH_CONFIG cannot be read: FileNotFoundError"
    assert of_file(tmp_path, b" " * (CONFIG_BYTES_MAX + 1)) == f"config.yml is larger than {CONFIG_BYTES_MAX} bytes"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "sinks.siem.kind is missing or unknown; known: splunk_hec, webhook"),
        ({"kind": HIDDEN}, "sinks.siem.kind is missing or unknown; known: splunk_hec, webhook"),
        (
            {"kind": "splunk_hec", "url": "https://h", "token": "token", "tokn": HIDDEN},
            'sinks.siem: unknown key "tokn"; did you mean "token"?',
        ),
        ({"kind": "splunk_hec", "url": HIDDEN, "token": "token"}, "sinks.siem: url: "),
        ({"kind": "splunk_hec", "url": "https://h", "token": f"Splunk {HIDDEN}"}, "sinks.siem: token: "),
        ({"kind": "splunk_hec", "url": "https://h", "token": "abc"}, "sinks.siem: token: "),
    ],
)
async def test_a_mistake_in_a_plug_ins_section_is_named_and_not_shown(section: dict[str, Any], said: str) -> None:
    async with httpx.AsyncClient() as client:
        with pytest.raises(ConfigError) as caught:
            open_plug_in("sinks", SINKS, "siem", section, client)
    assert str(caught.value).startswith(said)
    assert HIDDEN not in "".join(traceback.format_exception(caught.value))


def test_an_unknown_provider_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(f"sources: {{one: {{provider: skalekit, secrets: [{SECRET}]}}}}")
    section = load(AUTHWATCH_CONFIG=str(tmp_path / "config.yml")).sources["one"]
    with pytest.raises(ConfigError, match=r'sources\.one: unknown provider "skalekit"; known: scalekit'):
        open_source("one", section)
