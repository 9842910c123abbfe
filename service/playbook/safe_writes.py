"""What each API really offers for repeating a write without doing it twice, and how to see whether it was done.

`mechanism` is `key` (the provider remembers a key of yours and answers the same again), `upsert` or `own_id` (the write
names the thing, so that a repeat finds it), or `none`. `covers` says which writes it is for: outside of them there is
none. `not_this` is what looks like one and is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.playbook.names import family_of, product_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeWrite:
    provider: str
    mechanism: Literal["key", "upsert", "own_id", "none"]
    how: str
    covers: str
    state_check: str
    sources: tuple[str, ...]
    not_this: str | None = None


SAFE_WRITES: dict[str, SafeWrite] = {
    write.provider: write
    for write in (
        SafeWrite(
            provider="stripe",
            mechanism="key",
            how="Send the header `Idempotency-Key`, the same for every try of one operation, with the same parameters.",
            covers="Every POST. Keys are kept for at least 24 hours; a kept 500 is answered again.",
            state_check="List the object by a value of yours in its metadata, or read the id of the first answer.",
            sources=("https://docs.stripe.com/api/idempotent_requests",),
        ),
        SafeWrite(
            provider="salesforce",
            mechanism="upsert",
            how="Upsert by an external id: PATCH /sobjects/OBJECT/EXTERNAL_ID_FIELD/VALUE, the same value for every try.",
            covers="Records of objects that have an external id field.",
            state_check="Read the record by the same external id.",
            not_this="The composite request's `referenceId` only links the parts of one request; it is forgotten afterwards.",
            sources=(
                "https://developer.salesforce.com/docs/platform/api-rest/guide/dome-upsert.html",
                "https://developer.salesforce.com/docs/platform/api-rest/guide/dome-composite-upsert-example.html",
            ),
        ),
        SafeWrite(
            provider="atlassian",
            mechanism="none",
            how="There is none. Put a label or an issue property of your own on what you create.",
            covers="Nothing.",
            state_check="Look for the issue by your label or property before anything else; the search may lag by seconds.",
            not_this="`X-Atlassian-Token: no-check` switches off a check against forged browser requests (XSRF). It protects no"
            " write from being done twice.",
            sources=(
                "https://developer.atlassian.com/cloud/jira/platform/rest/v3/intro/#special-request-headers",
                "https://developer.atlassian.com/cloud/jira/platform/jira-entity-properties/",
            ),
        ),
        SafeWrite(
            provider="google-calendar",
            mechanism="own_id",
            how="Give the event an `id` of your own, the same for every try.",
            covers="events.insert. Google does not promise to see every collision.",
            state_check="events.get by that id.",
            sources=("https://developers.google.com/workspace/calendar/api/v3/reference/events#id",),
        ),
        SafeWrite(
            provider="google-drive",
            mechanism="own_id",
            how="Take an id from files.generateIds first, and create the file with it.",
            covers="files.create and files.copy, not Google Docs formats.",
            state_check="files.get by that id.",
            sources=("https://developers.google.com/workspace/drive/api/guides/create-file",),
        ),
        SafeWrite(
            provider="gmail",
            mechanism="none",
            how="There is none.",
            covers="Nothing.",
            state_check="Search the sent mail for a Message-ID of your own (rfc822msgid:).",
            not_this="A `Message-ID` header of yours makes the mail findable; it does not keep Gmail from sending it again.",
            sources=("https://developers.google.com/workspace/gmail/api/reference/rest/v1/users.messages/send",),
        ),
        SafeWrite(
            provider="google",
            mechanism="none",
            how="None that holds for every Google API; name the product (google-calendar, google-drive, gmail).",
            covers="Nothing.",
            state_check="Read the resource by the id that the write returned.",
            sources=("https://developers.google.com/workspace/drive/api/guides/create-file",),
        ),
        SafeWrite(
            provider="microsoft-calendar",
            mechanism="key",
            how="Set the event's `transactionId`, the same for every try.",
            covers="Creating calendar events.",
            state_check="List the calendar for the event's time and compare `transactionId`.",
            sources=("https://learn.microsoft.com/en-us/graph/api/resources/event",),
        ),
        SafeWrite(
            provider="microsoft",
            mechanism="none",
            how="None that holds for all of Microsoft Graph; calendar events have `transactionId` (name microsoft-calendar).",
            covers="Nothing.",
            state_check="Read the resource by the id that the write returned.",
            not_this="`client-request-id` is for finding a request in logs; it keeps nothing from being done twice.",
            sources=("https://learn.microsoft.com/en-us/graph/api/resources/event",),
        ),
        SafeWrite(
            provider="slack",
            mechanism="none",
            how="There is none. Put your own key into the message's `metadata`.",
            covers="Nothing.",
            state_check="Read conversations.history with include_all_metadata and look for your key.",
            sources=("https://docs.slack.dev/reference/methods/chat.postMessage",),
        ),
        SafeWrite(
            provider="github",
            mechanism="none",
            how="There is none for creating issues or comments. Write a marker of your own into the text.",
            covers="Nothing.",
            state_check="List the issues or comments since the first try and look for your marker.",
            not_this="The `sha` of the contents API keeps a file from being overwritten; it is no key for other writes.",
            sources=("https://docs.github.com/en/rest/issues/issues#create-an-issue",),
        ),
        SafeWrite(
            provider="box",
            mechanism="none",
            how="There is none. A second upload of the same name into a folder is refused with 409 item_name_in_use.",
            covers="Nothing.",
            state_check="List the folder and compare the name and the SHA-1.",
            not_this="`If-Match` keeps a change from overwriting someone else's; it is no key for creating things.",
            sources=("https://developer.box.com/guides/api-calls/permissions-and-errors/common-errors/",),
        ),
        SafeWrite(
            provider="auth0",
            mechanism="none",
            how="There is none. A second user of the same email in a connection is refused with 409.",
            covers="Nothing.",
            state_check="Read the user by email or user_id.",
            sources=("https://auth0.com/docs/api/management/v2/users/post-users",),
        ),
        SafeWrite(
            provider="unknown",
            mechanism="none",
            how="None that this playbook knows of: look it up at the provider.",
            covers="Nothing.",
            state_check="Read the resource by the id that the write returned.",
            sources=("RFC 9110 section 9.2.2",),
        ),
    )
}


def safe_write(provider: object) -> SafeWrite:
    """What the API of this provider offers; `unknown` for one that is not in the table."""
    return SAFE_WRITES.get(product_of(provider)) or SAFE_WRITES.get(family_of(provider)) or SAFE_WRITES["unknown"]
