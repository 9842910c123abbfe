"""Frozen settings, read once from the environment and the optional config file; what cannot be right stops the start.

`NAME_FILE` may stand for `NAME` everywhere: the value is then the file's content. `${NAME}` in the config file takes
a value the same way. A source's secrets may change while we run (`load_sources`); nothing else does. A plug-in's own section is validated by the plug-in when `runtime.py` opens it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Field,
    InstanceOf,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.composer import ComposerError
from ruamel.yaml.constructor import ConstructorError, DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.reader import ReaderError

from service.errors import ConfigError
from service.import_settings import IMPORTS_MAX, ImportSettings, of_known
from service.redact import MASK, redact_text
from service.retention_settings import RetentionSettings as RetentionSettings
from service.routing import mistakes
from service.routing.model import RoutingKeys
from service.routing.tree import BadRouting, Routing, everybody, routing_in_force
from service.slack_settings import clicks_section
from service.strict import Strict

CONFIG_BYTES_MAX = 256 * 1024
TOKEN_CHARS_MIN = 8
REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SECRET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SECRETS_MAX = 16  # of one source: every request is checked against each
# A key as people write them: no secret of any use is as short.
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,29}|.{1,8}")
# ruamel's own words for these quote the value, which may be a secret.
YAML_MISTAKES: tuple[tuple[type[Exception], str], ...] = (
    (DuplicateKeyError, "a key is given twice"),
    (ComposerError, "an alias of something that is not there"),
    (ConstructorError, "a value that is not what its tag says"),
    (ReaderError, "it is not UTF-8 text"),
    (UnicodeError, "it is not UTF-8 text"),
    (RecursionError, "it nests too deep"),
    (ValueError, "a value that is not what its tag says"),
)


class SecretSettings(Strict):
    """A signing secret: its text, or {name, value} or {name, file}. Without a name it goes by its fingerprint."""

    name: str | None = None
    value: SecretStr | None = None
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _text_alone(cls, given: Any) -> Any:
        return {"value": given} if isinstance(given, str) else given

    @field_validator("name", mode="before")
    @classmethod
    def _name_can_be_shown(cls, given: Any) -> Any:
        name = str(given) if isinstance(given, int | date) else given  # what YAML makes of 2026 and of 2026-11-24
        if isinstance(name, str) and SECRET_NAME.fullmatch(name) is None:
            raise ValueError("a secret's name is letters, digits, dots, - and _, at most 64")
        if isinstance(name, str) and redact_text(name) != name:
            raise ValueError("a secret's name looks like a secret; names are shown")
        return name

    @model_validator(mode="after")
    def _one_place(self) -> SecretSettings:
        if (self.value is None) == (self.file is None):
            raise ValueError("give either value or file")
        return self

    def get_secret_value(self) -> str:
        assert self.value is not None, "read_config puts a file's content in its place"
        return self.value.get_secret_value()


class SourceSettings(Strict):
    """A configured endpoint: `POST /webhooks/{name}`. `secrets` is newest first; all of them are accepted.

    `rate_limit_per_second` counts genuine requests only, in each receiver process; above it they are answered 429.
    """

    provider: str = "scalekit"
    secrets: tuple[SecretSettings, ...] = Field(min_length=1, max_length=SECRETS_MAX)
    verify_with: Literal["own", "sdk"] = "own"
    rate_limit_per_second: float | None = Field(None, ge=1)


class Sections(Strict):
    sources: dict[str, SourceSettings] | None = None
    notifiers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sinks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    orchestrators: dict[str, dict[str, Any]] = Field(default_factory=dict)
    imports: tuple[ImportSettings, ...] = Field((), max_length=IMPORTS_MAX)
    retention: RetentionSettings = Field(default_factory=RetentionSettings)


class ConfigFile(RoutingKeys, Sections):
    """Everything that the config file may say."""


class ProviderApi(Strict):
    env_url: str
    client_id: str
    client_secret: SecretStr


class Settings(Strict):
    database_url: SecretStr
    redis_url: SecretStr | None
    admin_token: SecretStr | None
    public_url: str | None
    heartbeat_url: SecretStr | None
    rules_folder: Path
    data_dir: Path | None
    sources: dict[str, SourceSettings]
    notifiers: dict[str, dict[str, Any]]
    sinks: dict[str, dict[str, Any]]
    orchestrators: dict[str, dict[str, Any]]
    imports: tuple[ImportSettings, ...] = ()
    provider_api: ProviderApi | None
    retention: RetentionSettings = Field(default_factory=RetentionSettings)
    routing: InstanceOf[Routing] = Field(default_factory=lambda: everybody(()))


class Environment:
    """The process environment with `*_FILE` resolved; a variable that is set and empty is a mistake, not a default.

    `files` is every file that was asked for, with the SHA-256 of what was read there, None when it could not be read.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self.files: dict[Path, bytes | None] = {}

    def read_file(self, path: Path) -> bytes:
        """Raises OSError."""
        self.files[path] = None
        content = path.read_bytes()
        self.files[path] = hashlib.sha256(content).digest()
        return content

    def get(self, name: str) -> str | None:
        if name in self._variables:
            value = self._variables[name].strip()
            if not value:
                raise ConfigError(f"{name} is set but empty; give it a value or unset it")
            return value
        path = self._variables.get(f"{name}_FILE")
        if path is None:
            return None
        try:
            value = self.read_file(Path(path)).decode("utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{name}_FILE cannot be read: {type(exc).__name__}") from exc
        if not value:
            raise ConfigError(f"the file that {name}_FILE names is empty")
        return value

    def url(self, name: str, *schemes: str) -> str | None:
        value = self.get(name)
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            valid = (
                parts.scheme in schemes
                and bool(parts.hostname or parts.query)
                and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            valid = False
        if not valid:
            raise ConfigError(f"{name} is not a URL of the form {schemes[0]}://host")
        return value


def load_settings(variables: Mapping[str, str]) -> Settings:
    """Raises ConfigError, one sentence naming the setting, never its value."""
    env = Environment(variables)
    database_url = env.url("DATABASE_URL", "postgresql", "postgres")
    if database_url is None:
        raise ConfigError("DATABASE_URL is missing: set it, or run `authwatch up`, which starts a Postgres of its own")
    redis_url = env.url("REDIS_URL", "redis", "rediss", "unix")
    admin_token = env.get("AUTHWATCH_ADMIN_TOKEN")
    if admin_token is not None and len(admin_token) < TOKEN_CHARS_MIN:
        raise ConfigError(f"AUTHWATCH_ADMIN_TOKEN is too short: at least {TOKEN_CHARS_MIN} characters")
    public_url = env.url("AUTHWATCH_PUBLIC_URL", "https", "http")
    if public_url is not None and "@" in urlsplit(public_url).netloc:
        raise ConfigError("AUTHWATCH_PUBLIC_URL must hold no user and no password; it is shown in messages")
    heartbeat_url = env.url("AUTHWATCH_HEARTBEAT_URL", "https", "http")
    rules = env.get("AUTHWATCH_RULES")
    data_dir = env.get("AUTHWATCH_DATA_DIR")
    file = config_file(env)
    notifiers = file.notifiers or built_in_notifiers(env)
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url) if redis_url else None,
        admin_token=SecretStr(admin_token) if admin_token else None,
        public_url=public_url.rstrip("/") if public_url else None,
        heartbeat_url=SecretStr(heartbeat_url) if heartbeat_url else None,
        rules_folder=Path(rules) if rules else default_rules_folder(),
        data_dir=Path(data_dir) if data_dir else None,
        sources=sources_of(file, env),
        notifiers=notifiers,
        sinks=file.sinks or built_in_sinks(env),
        orchestrators=file.orchestrators,
        imports=of_known(file.imports, file.orchestrators),
        provider_api=provider_api(env),
        retention=file.retention,
        routing=routing_of(file, list(notifiers), env),
    )


def routing_of(file: RoutingKeys, notifiers: list[str], env: Environment) -> Routing:
    try:
        return routing_in_force(file, notifiers)
    except BadRouting as exc:
        path = Path(env.get("AUTHWATCH_CONFIG") or "")
        raise ConfigError(mistakes.of_routing(exc, path.name, env.read_file(path))) from None


def load_sources(env: Environment) -> dict[str, SourceSettings]:
    """The sources alone, read anew; `env.files` then tells from where. Raises ConfigError like `load_settings`."""
    return sources_of(config_file(env), env)


def config_file(env: Environment) -> ConfigFile:
    path = env.get("AUTHWATCH_CONFIG")
    return read_config(Path(path), env) if path else ConfigFile()


def sources_of(file: ConfigFile, env: Environment) -> dict[str, SourceSettings]:
    return file.sources if file.sources is not None else built_in_sources(env)


def default_rules_folder() -> Path:
    """`alert_rules` where we stand, else the one that ships beside the code."""
    here = Path("alert_rules")
    return here if here.is_dir() else Path(__file__).resolve().parent.parent / "alert_rules"


def built_in_sources(env: Environment) -> dict[str, SourceSettings]:
    """One source `scalekit`; without a secret it is switched off (404) and never "verifies against nothing"."""
    value = env.get("SCALEKIT_WEBHOOK_SECRET")
    if value is None:
        return {}
    parts = [part.strip() for part in value.split(",")]
    if not all(parts):
        raise ConfigError("SCALEKIT_WEBHOOK_SECRET has an empty secret between its commas")
    if len(parts) > SECRETS_MAX:
        raise ConfigError(
            f"SCALEKIT_WEBHOOK_SECRET has {len(parts)} secrets; at most {SECRETS_MAX} may be live at a time"
        )
    return {"scalekit": SourceSettings(secrets=tuple(SecretSettings(value=SecretStr(part)) for part in parts))}


def built_in_notifiers(env: Environment) -> dict[str, dict[str, Any]]:
    token, channel, api_url = (
        env.get("SLACK_BOT_TOKEN"),
        env.get("SLACK_CHANNEL"),
        env.url("SLACK_API_URL", "https", "http"),
    )
    if token is None and channel is not None:
        raise ConfigError("SLACK_CHANNEL is set but SLACK_BOT_TOKEN is not; without it nothing would be posted")
    clicks = clicks_section(env.get)
    if token is None and clicks:
        raise ConfigError("SLACK_SIGNING_SECRET and SLACK_MAY_ACT are of no use without SLACK_BOT_TOKEN; set it too")
    if token is None:
        return {"console": {"kind": "console"}}
    if channel is None:
        raise ConfigError("SLACK_BOT_TOKEN is set but SLACK_CHANNEL is not; name the on-call channel")
    section: dict[str, Any] = {"kind": "slack", "token": token, "channel": channel, **clicks}
    return {"slack": section | ({"api_url": api_url} if api_url else {})}


def built_in_sinks(env: Environment) -> dict[str, dict[str, Any]]:
    url, token = env.url("SPLUNK_HEC_URL", "https", "http"), env.get("SPLUNK_HEC_TOKEN")
    if (url is None) != (token is None):
        missing = "SPLUNK_HEC_URL" if url is None else "SPLUNK_HEC_TOKEN"
        raise ConfigError(f"{missing} is missing: Splunk HEC needs both SPLUNK_HEC_URL and SPLUNK_HEC_TOKEN")
    return {} if url is None else {"splunk": {"kind": "splunk_hec", "url": url, "token": token}}


def provider_api(env: Environment) -> ProviderApi | None:
    names = ("SCALEKIT_ENV_URL", "SCALEKIT_CLIENT_ID", "SCALEKIT_CLIENT_SECRET")
    values = {name: env.get(name) for name in names}
    missing = [name for name in names if values[name] is None]
    if len(missing) == len(names):
        return None
    if missing:
        raise ConfigError(f"{', '.join(missing)} is missing: the provider's API needs all of {', '.join(names)}")
    return ProviderApi(
        env_url=env.url("SCALEKIT_ENV_URL", "https", "http") or "",
        client_id=values["SCALEKIT_CLIENT_ID"] or "",
        client_secret=SecretStr(values["SCALEKIT_CLIENT_SECRET"] or ""),
    )


def read_config(path: Path, env: Environment) -> ConfigFile:
    try:
        raw = env.read_file(path)
    except OSError as exc:
        raise ConfigError(f"AUTHWATCH_CONFIG cannot be read: {type(exc).__name__}") from exc
    if len(raw) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path.name} is larger than {CONFIG_BYTES_MAX} bytes")
    try:
        loaded = resolve(YAML(typ="safe", pure=True).load(raw), env)
    except (YAMLError, ValueError, RecursionError) as exc:
        raise ConfigError(f"{path.name}{explain_yaml(exc)}") from None  # the cause quotes the file's lines
    if loaded is not None and not isinstance(loaded, dict):
        raise ConfigError(f"{path.name}: it must be a mapping of {', '.join(ConfigFile.model_fields)}")
    try:
        file = ConfigFile.model_validate(loaded or {})
    except ValidationError as exc:
        routing = mistakes.of_validation(exc, path.name, raw)
        raise ConfigError(routing or f"{path.name}: {explain(exc, ConfigFile)}") from None
    for name in file.sources or {}:
        # It stands in a path, in labels, and before the colon of a full account id.
        if not SOURCE_NAME.fullmatch(name) or redact_text(name) != name:
            where = f"{path.name}: sources.{harmless(name)}"
            raise ConfigError(f"{where}: a source's name is letters, digits, - and _, at most 64, and no secret")
    if file.sources is None:
        return file
    return file.model_copy(
        update={"sources": {name: with_files_read(name, section, env) for name, section in file.sources.items()}}
    )


def with_files_read(name: str, section: SourceSettings, env: Environment) -> SourceSettings:
    """Each `file` of a secret replaced by what it holds."""
    secrets = []
    for number, secret in enumerate(section.secrets, 1):
        if secret.file is not None:
            where = f"sources.{name}.secrets: the file of {secret.name or f'secret {number}'}"
            try:
                text = env.read_file(secret.file).decode("utf-8").strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise ConfigError(f"{where} cannot be read: {type(exc).__name__}") from None
            if not text:
                raise ConfigError(f"{where} is empty")
            secret = SecretSettings(name=secret.name, value=SecretStr(text))
        secrets.append(secret)
    return section.model_copy(update={"secrets": tuple(secrets)})


def explain_yaml(exc: Exception) -> str:
    """Where it is and what is wrong, without the words that stand there."""
    mark = getattr(exc, "problem_mark", None)
    where = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    known = next((words for kind, words in YAML_MISTAKES if isinstance(exc, kind)), None)
    problem = redact_text(getattr(exc, "problem", None) or type(exc).__name__).partition(" '!")[0]
    return f"{where}: not YAML: {known or problem}"


def resolve(value: Any, env: Environment) -> Any:
    """Every `${NAME}` replaced; a name that is not set is a mistake."""

    def replace(match: re.Match[str]) -> str:
        found = env.get(match[1])
        if found is None:
            raise ConfigError(f"the config file asks for ${{{redact_text(match[1])}}}, which is not set")
        return found

    if isinstance(value, str):
        return REFERENCE.sub(replace, value)
    if isinstance(value, dict):
        return {str(key): resolve(item, env) for key, item in value.items()}
    if isinstance(value, list):
        return [resolve(item, env) for item in value]
    return value


def explain(exc: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, with the nearest right word for an unknown key; never the value itself.

    A slip of YAML (`- whsec_...:`) makes a value a key, so keys are shown only as far as they are harmless.
    """
    error = exc.errors(include_input=False, include_url=False)[0]
    where = ".".join(harmless(str(part)) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        depth = len(error["loc"]) if model is ConfigFile else 0
        of_key: dict[str, type[BaseModel]] = {"retention": RetentionSettings, "imports": ImportSettings}
        inner = of_key.get(str(error["loc"][0]), SourceSettings)
        at = SecretSettings if depth > 3 else inner if depth > 1 else model
        known = list(at.model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f'unknown key "{where}"' + (f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(known)}")
    return f"{where}: {redact_text(error['msg'].removeprefix('Value error, '))}"


def harmless(key: str) -> str:
    """A key of the config file as it may stand in a log, an alert or a channel."""
    return redact_text(key) if WORD.fullmatch(key) else MASK
