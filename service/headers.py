"""Which headers of a request are kept as evidence: all but what could be used to sign in somewhere, bounded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from service.redact import MASK, is_secret_name, redact_text
from service.signatures import PARTS, PREFIXES

SIGNATURE_HEADERS = frozenset(prefix + part for prefix in PREFIXES for part in PARTS)
HEADER_CHARS_MAX = 4096  # as long as a signature may be
HEADERS_MAX = 64
NAME_CHARS_MAX = 128
NAMES_MAX = 1024
# Never kept: what could be used to sign in somewhere, at the provider's, at ours or at a proxy's.
CREDENTIAL_HEADERS = frozenset(
    {
        b"api-key",
        b"apikey",
        b"authentication",
        b"authorization",
        b"cf-access-client-secret",
        b"cf-access-jwt-assertion",
        b"cf-access-token",
        b"cookie",
        b"forwarded-authorization",
        b"ocp-apim-subscription-key",
        b"proxy-authorization",
        b"set-cookie",
        b"x-access-token",
        b"x-amz-security-token",
        b"x-amzn-oidc-accesstoken",
        b"x-amzn-oidc-data",
        b"x-amzn-oidc-identity",
        b"x-api-key",
        b"x-api-token",
        b"x-apikey",
        b"x-auth",
        b"x-auth-key",
        b"x-auth-request-access-token",
        b"x-auth-token",
        b"x-authorization",
        b"x-client-secret",
        b"x-csrf-token",
        b"x-forwarded-access-token",
        b"x-forwarded-authorization",
        b"x-functions-key",
        b"x-gitlab-token",
        b"x-goog-iap-jwt-assertion",
        b"x-id-token",
        b"x-ms-token-aad-access-token",
        b"x-ms-token-aad-id-token",
        b"x-ms-token-aad-refresh-token",
        b"x-original-authorization",
        b"x-secret",
        b"x-serverless-authorization",
        b"x-session-id",
        b"x-session-token",
        b"x-token",
        b"x-vault-token",
        b"x-xsrf-token",
    }
)
# A token under a name that nobody thought of: the value is masked whole, where `redact_text` would leave its beginning.
TOKEN_STARTS = (
    b"Bearer ",
    b"bearer ",
    b"BEARER ",
    b"Basic ",
    b"basic ",
    b"DPoP ",
    b"Token ",
    b"token ",
    b"eyJ",
    b"whsec_",
)
# What almost every request brings and holds no credential, with its name as text: known without asking any further.
PLAIN_HEADERS = {
    name: name.decode("ascii")
    for name in (
        b"accept",
        b"accept-encoding",
        b"connection",
        b"content-length",
        b"content-type",
        b"host",
        b"user-agent",
        *sorted(SIGNATURE_HEADERS),
    )
}


@lru_cache(maxsize=NAMES_MAX)
def shown_name(name: bytes) -> tuple[str, bool]:
    """The name as it is kept, and whether what it carries is not: a name that nobody thought of may say so too."""
    text = name.decode("latin-1")
    return text, is_secret_name(text) or text.endswith("-key")


def kept_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Bounded; the signature's headers come first, so that whatever came with them the receipt can be verified again."""
    if len(headers) > HEADERS_MAX:
        headers = sorted(headers, key=lambda header: header[0] not in SIGNATURE_HEADERS)[:HEADERS_MAX]
    kept: dict[str, str] = {}
    left_off = 0
    for name, value in headers:
        plain = PLAIN_HEADERS.get(name)
        if plain is not None and len(value) <= HEADER_CHARS_MAX:
            kept[plain] = value.decode("latin-1")
        elif name in CREDENTIAL_HEADERS:
            left_off += 1
        else:
            text, secret = shown_name(name[:NAME_CHARS_MAX])
            kept[text] = MASK if secret else kept_value(value)
    # One of a name is the rule; what came twice is told whole, as a proxy would join it.
    return kept if len(kept) + left_off == len(headers) else joined(headers)


def joined(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for name, value in headers:
        if name in CREDENTIAL_HEADERS:
            continue
        text, secret = shown_name(name[:NAME_CHARS_MAX])
        one = (
            MASK
            if secret
            else value[:HEADER_CHARS_MAX].decode("latin-1")
            if name in PLAIN_HEADERS
            else kept_value(value)
        )
        kept[text] = f"{kept[text]}, {one}"[:HEADER_CHARS_MAX] if text in kept else one
    return kept


def kept_value(value: bytes) -> str:
    return MASK if value.startswith(TOKEN_STARTS) else redact_text(value[:HEADER_CHARS_MAX].decode("latin-1"))
