"""Masks whatever may carry a token, by field name and by shape, so that nothing we show, log or forward can authorize.

Pure, bounded in depth, items and text, and safe to run twice. It masks too much rather than too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_plus

MASK = "***"
DEPTH_MAX = 64
ITEMS_MAX = 50_000
NESTED_URLS_MAX = 3  # a URL in the query of a URL, and so on
NAME_CHARS_MAX = 256  # of a field
TEXT_CHARS_MAX = 64 * 1024  # of one string
TOTAL_CHARS_MAX = 2 * 1024 * 1024  # a webhook body is at most 1 MiB

# A name is compared in lower case without its separators, so `accessToken`, `ACCESS-TOKEN` and `access_token` are one.
SECRET_ENDINGS = (
    "token",
    "tokens",
    "secret",
    "secrets",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "pw",
    "apikey",
    "apikeys",
    "privatekey",
    "secretkey",
    "accesskey",
    "signingkey",
    "encryptionkey",
    "privatejwk",
    "authorization",
    "cookie",
    "cookies",
    "credential",
    "credentials",
    "assertion",
    "codeverifier",
    "jwt",
    "authcode",
    "authorizationcode",
    "devicecode",
    "usercode",
    "verificationcode",
    "oauthstate",
    "authorizationurl",
    "authurl",
    "reauthurl",
    "callbackurl",
    "dsn",
)
SECRET_NAMES = frozenset({"code", "pass", "otp", "totp", "pin", "bearer", "recoverycodes", "backupcodes"})
SECRET_PARAMETERS = frozenset(
    {"state", "sig", "signature", "hmac", "key", "ticket", "nonce", "samlresponse"}
)  # in URLs only
# `{"error": {"code": "invalid_grant"}}` is a cause, not an authorization code; the on-call needs it.
ERROR_PARENTS = ("error", "errors", "exception", "fault", "problem")

_SEPARATORS = re.compile(r"[^a-z0-9]+")
# A link may authorize as the user who was to click it. As a word only: `blink` is not one.
_WORD_LINK = re.compile(r"(?:^|[^A-Za-z])(?i:links?)$|[a-z]Links?$|magic_?links?$")

_KNOWN_SHAPES = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)"
    r"|(?<![A-Za-z0-9])(?:"
    r"eyJ[\w-]{8,}(?:\.[\w-]*)*"  # JWT: base64url of `{"`
    r"|whsec_[\w+/=-]+"
    r"|xox[a-z](?:\.xox[a-z])?-[\w-]+|xapp-[\w-]+"
    r"|ya29\.[\w.-]+|1//0[\w-]{8,}|GOCSPX-[\w-]+"
    r"|gh[opusr]_\w+|github_pat_\w+|glpat-[\w-]+"
    r"|(?:sk|rk)_(?:live|test)_\w+|sk-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{12,}"
    r")",
    re.DOTALL,
)
_SCHEME_AND_CREDENTIAL = re.compile(
    r"\b((?i:Bearer|DPoP))(\s{1,8})(?!(?i:tokens?|scheme|realm|error|auth[a-z]*)\b)([^\s,;\"'\\]+)"
    r"|\b((?i:Basic|Splunk|Negotiate|Digest|Bot))(\s{1,8})(?=[\w+/=.-]*[0-9A-Z=])([\w+/=.-]{6,})"  # not "basic authentication"
)
_USERINFO = re.compile(r"(?<=://)[^/\s?#@\"'<>]+@")
_PARAMETER = re.compile(r"(?<=[?&;#])([\w.\-\[\]%]{1,64})=([^&#\s\"'<>]+)")
_PAIR = re.compile(
    r"(?<![\w-])(?P<quote>\\{0,8}[\"']|)(?P<name>[A-Za-z][\w-]{0,63})(?P=quote)(?P<join>\s{0,8}[=:]\s{0,8})"
    r"(?:(?P<open>\\{0,8}[\"'])(?P<quoted>.*?)(?P=open)|(?P<bare>[^\s\"'\\&,;{}\[\]]+))",
    re.DOTALL,
)
# A flag of a command: `--token abc`, `--token=abc`, `-token=abc`.
_FLAG = re.compile(
    r"(?<![\w-])(?:(?P<flag>--[A-Za-z][\w-]{0,63})(?P<join>\s{1,8}(?!--|-[A-Za-z][\w-]{0,63}=)|=)|(?P<short>-[A-Za-z][\w-]{0,63})=)"
    r"(?P<value>\\{0,8}(?P<quote>[\"']).*?\\{0,8}(?P=quote)|[^\s\"'&,;{}\[\]]+)",
    re.DOTALL,
)
_FLAG_ALONE = re.compile(r"--?[A-Za-z][\w-]{0,63}")
# What a sentence says before a colon: "token: expired". `client_secret`, `password` and the like are fields.
PROSE_NAMES = frozenset(
    {"token", "tokens", "code", "authorization", "cookie", "cookies", "credential", "credentials"}
    | {"assertion", "jwt", "link", "links", "bearer", "otp", "pin"}
)
# Words that stand after the name of a secret in a sentence about it, and are none.
_PLAIN_WORD = re.compile(
    r"(?:an?|absent|are|bearer|basic|be|cannot|digest|does|dpop|empty|expired|for|has|in|invalid|is|it|may|missing|must"
    r"|needs?|negotiate|never|no|none|not|null|of|on|only|or|redacted|refused|rejected|required|revoked|set|should|splunk"
    r"|the|this|too?|true|false|unknown|unset|wants|was|with|wrong)[.:!?)]{0,8}",
    re.IGNORECASE,
)
_ONE_WORD = re.compile(r"[\w.@+-]{0,512}")


def redact(value: Any) -> Any:
    """A deep copy of JSON-like data with token-like fields and values masked; what is beyond the bounds is masked too."""
    return _copy(value, _Budget(), 0, None)


def redact_text(text: str) -> str:
    """The same sentence without its tokens: for error messages and any text that came from outside."""
    cut = text[:TEXT_CHARS_MAX]
    cut = _KNOWN_SHAPES.sub(MASK, cut)
    if _ONE_WORD.fullmatch(text):
        return cut  # ids and names, which is nearly everything: the patterns below need a separator
    cut = _SCHEME_AND_CREDENTIAL.sub(lambda m: f"{m[1] or m[4]}{m[2] or m[5]}{MASK}", cut)
    cut = _USERINFO.sub(f"{MASK}@", cut)
    cut = _PARAMETER.sub(_mask_parameter, cut)
    cut = _FLAG.sub(_mask_flag, cut)
    cut = _PAIR.sub(_mask_pair, cut)
    left_off = len(text) - TEXT_CHARS_MAX
    return cut if left_off <= 0 else f"{cut} ... ({left_off} more characters)"


@lru_cache(maxsize=2048)  # field names repeat; every item of every batch comes through here
def is_secret_name(name: str) -> bool:
    """Does a field of this name carry something that authorizes? `token_type` and `token_expires_at` do not."""
    squashed = _squash(name)
    return squashed in SECRET_NAMES or squashed.endswith(SECRET_ENDINGS) or _WORD_LINK.search(name) is not None


@lru_cache(maxsize=2048)
def _squash(name: str) -> str:
    return _SEPARATORS.sub("", name.lower())


@lru_cache(maxsize=2048)
def _name(name: str) -> str:
    return redact_text(name)


@dataclass(slots=True)
class _Budget:
    items: int = ITEMS_MAX
    characters: int = TOTAL_CHARS_MAX

    def take(self, items: int, characters: int) -> bool:
        self.items -= items
        self.characters -= characters
        return self.items >= 0 and self.characters >= 0


def _copy(value: Any, budget: _Budget, depth: int, parent: str | None) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if depth > DEPTH_MAX or not budget.take(1, len(value) if isinstance(value, str) else 0):
        return MASK
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return dict(_copy_fields(value, budget, depth, parent))
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(_copy_items(value, budget, depth, parent))
    return MASK  # not JSON: its text could be anything


def _copy_fields(
    value: Mapping[Any, Any], budget: _Budget, depth: int, parent: str | None
) -> Iterator[tuple[str, Any]]:
    # Lists of pairs such as {"name": "Authorization", "value": "..."} carry the name in a value.
    label = next((value[key] for key in ("name", "key", "Name", "Key") if isinstance(value.get(key), str)), None)
    labelled_secret = label is not None and is_secret_name(label)
    for key, item in value.items():
        if budget.items < 0 or budget.characters < 0:
            return
        name = (key if isinstance(key, str) else str(key))[:NAME_CHARS_MAX]
        squashed = _squash(name)
        if _is_secret_field(name, squashed, item, parent) or (labelled_secret and squashed == "value"):
            yield _name(name), _mask(item)
        else:
            yield _name(name), _copy(item, budget, depth + 1, squashed)


def _copy_items(value: Sequence[Any], budget: _Budget, depth: int, parent: str | None) -> Iterator[Any]:
    flagged = False  # a command's words: what follows `--token` is one
    for item in value:
        if budget.items < 0 or budget.characters < 0:
            return
        flag = isinstance(item, str) and _FLAG_ALONE.fullmatch(item) is not None
        another = flag and item.startswith("--")
        yield _mask(item) if flagged and not another else _copy(item, budget, depth + 1, parent)
        flagged = flag and is_secret_name(item.lstrip("-"))


def _is_secret_field(name: str, squashed: str, item: Any, parent: str | None) -> bool:
    if squashed == "code" and parent is not None and parent.endswith(ERROR_PARENTS):
        return False
    if squashed == "val" and parent == "state":  # where Composio's connected account keeps its tokens
        return True
    if squashed.endswith("tokens") and isinstance(item, int | float):
        return False  # a count, as of a language model's tokens
    return is_secret_name(name)


def _mask(item: Any) -> Any:
    """Absence is worth telling and gives nothing away; everything else is masked whole."""
    return item if item is None or item == "" or isinstance(item, bool) else MASK


def _mask_parameter(match: re.Match[str], nested: int = 0) -> str:
    name, value = match[1], match[2]
    if is_secret_name(unquote_plus(name)) or _squash(name) in SECRET_PARAMETERS:
        return f"{name}={MASK}"
    if "%" in value:  # a URL inside a URL
        plain = unquote_plus(value)
        if nested == NESTED_URLS_MAX or _KNOWN_SHAPES.search(plain) or _USERINFO.search(plain):
            return f"{name}={MASK}"
        if _PARAMETER.sub(lambda inner: _mask_parameter(inner, nested + 1), plain) != plain:
            return f"{name}={MASK}"
    return match[0]


def _mask_flag(match: re.Match[str]) -> str:
    flag, value = match["flag"] or match["short"], match["value"]
    if not is_secret_name(flag.lstrip("-")) or value == MASK:
        return match[0]
    joined = match["join"] or "="
    if joined != "=" and _is_plain(value):
        return match[0]  # "--token is missing"
    return f"{flag}{joined}{MASK}"


def _is_plain(value: str) -> bool:
    return _PLAIN_WORD.fullmatch(value) is not None


def _mask_pair(match: re.Match[str]) -> str:
    name, value = match["name"], match["quoted"] if match["open"] else match["bare"]
    if not is_secret_name(name) or value in ("", MASK) or value.lower() in ("null", "none", "true", "false"):
        return match[0]
    prose = ":" in match["join"] and not match["quote"] and not match["open"]
    if prose and _is_plain(value):
        return match[0]
    if prose and _squash(name) in PROSE_NAMES and len(value) < 16 and not any(char.isdigit() for char in value):
        return match[0]  # "refresh token: expired" is a sentence
    quote, opened = match["quote"], match["open"] or ""
    return f"{quote}{name}{quote}{match['join']}{opened}{MASK}{opened}"
