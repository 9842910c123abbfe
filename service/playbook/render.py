"""docs/playbook.md, made from the table: `authwatch playbook > docs/playbook.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from service.playbook.classify import UNATTENDED_WAIT_SECONDS_MAX
from service.playbook.safe_writes import SAFE_WRITES
from service.playbook.table import BY_PROVIDER, EVERYONES
from service.playbook.words import ACTIONS, POLICIES, RESPONSES, Action, Policy, Row

TITLES = {
    "google": "Google",
    "salesforce": "Salesforce",
    "slack": "Slack",
    "github": "GitHub",
    "box": "Box",
    "atlassian": "Atlassian (Jira, Confluence)",
    "auth0": "Auth0",
    "microsoft": "Microsoft",
    "stripe": "Stripe",
    "google-calendar": "Google Calendar",
    "google-drive": "Google Drive",
    "gmail": "Gmail",
    "microsoft-calendar": "Outlook calendar",
    "unknown": "Any other",
}
# What it looks like, for who has one of them on the screen.
LOOKS = {
    "token_expired": "`invalid_token`, `token_expired`, `INVALID_SESSION_ID`",
    "refresh_failed": "`invalid_grant`, `token_revoked`, `bad_refresh_token`, `invalid_client`",
    "insufficient_scope": "403, `insufficient_scope`, `missing_scope`",
    "rate_limited": "429, or a 403 that speaks of a limit",
    "upstream_5xx": "500, 502, 503, `temporarily_unavailable`",
    "malformed_params": "400, 422, `invalid_request`",
    "partial_execution": "200, and the write is not there, differs, or waits",
    "other": "a bare 401, 404, 409, no answer",
}
RETRIES: dict[Policy, str] = {
    "never": "never",
    "after_refresh": "once, after one refresh",
    "rate_limit": "3, then the circuit",
    "upstream": "2 in 60 s, then the circuit",
    "partial": "once, behind the provider's own mechanism",
}
OF_OTHER = "Refresh once after a bare 401; back off after no answer; else stop and look. The table below says which."
EXAMPLE = """\
curl -s "$AUTHWATCH_URL/v1/classify" -H "Authorization: Bearer $TOKEN" -d '{
  "provider": "jira", "http_status": 403, "operation": "write",
  "headers": {"content-type": "application/json"},
  "body": {"error": "invalid_grant", "error_description": "Unknown or invalid refresh token."}
}'"""


def page() -> str:
    return "\n".join(lines()) + "\n"


def lines() -> Iterator[str]:
    rate, upstream = POLICIES["rate_limit"], POLICIES["upstream"]
    yield from (
        "<!-- Made by `authwatch playbook`. Change service/playbook, not this file. -->",
        "# A call failed: what to do now",
        "",
        "Find the provider's code, not the status: the same 401 can be an expired token, a revoked one, or a missing scope.",
        "",
        "| class | looks like | do now | retries |",
        "|---|---|---|---|",
    )
    for error_class, action in RESPONSES.items():
        do = OF_OTHER if error_class == "other" else ACTIONS[action]
        yield f"| `{error_class}` | {LOOKS[error_class]} | {do} | {retries_of(error_class, action)} |"
    yield from (
        "",
        "Three rules hold for every row:",
        "",
        "1. `invalid_grant` and scope failures are never retried, whatever else the answer says. The user is asked to authorize"
        " again.",
        "2. 400 and 422 are never retried. The raw parameters and the schema go to review; where the body says that the provider"
        " is unavailable, the step is queued. Only an access token that has expired is refreshed first.",
        "3. A write is repeated only after a look at the state, and only through the provider's own mechanism"
        " ([below](#writes)). Where it has none, a person looks. What nobody calls a read is taken for a write.",
        "",
        f"Waiting: as long as `Retry-After` asks (seconds, a date, or `retry-after-ms`) plus a little at random. Without it,"
        f" before retry n between half and all of {rate.backoff_base_seconds:g} × {rate.backoff_factor:g}^(n-1) seconds, at most"
        f" {rate.backoff_max_seconds:g} s after a 429 and {upstream.backoff_max_seconds:g} s after a 5xx. After"
        f" {rate.retries_max} retries of a 429, or {upstream.retries_max} of a 5xx within {upstream.within_seconds} s, the circuit"
        " breaks: the step is halted and queued until the provider is well. A wait of more than"
        f" {UNATTENDED_WAIT_SECONDS_MAX // 3600} hours is not waited for unattended: the step is queued, and a person looks.",
        "",
        "## Expired or revoked?",
        "",
        "| the provider said | it is | so |",
        "|---|---|---|",
        "| `invalid_token` | the **access token**: expired, revoked or invalid | refresh once; that tells |",
        "| `invalid_grant` | the **refresh token**: expired, revoked or invalid | authorize again; a refresh cannot work |",
        "| `token_expired`, or a description that says expired | expired | refresh once |",
        "| `token_revoked`, or a description that says revoked | revoked | authorize again |",
        "| a 401 and nothing else | not known | refresh once; that tells |",
        "| nothing: a webhook without a reason, such as Scalekit's | not known | look at the account's status |",
        "",
        "## Ask Authwatch",
        "",
        "```sh",
        EXAMPLE,
        "```",
        "",
        "The answer names `class`, `action`, `what_to_do`, `token_state`, `retry`, `operation` and, for a write, `safe_write`. Say"
        " `operation` (`read` or `write`; `get`, `list`, `search` and `query` are reads, and all else is taken for a write), `attempt`"
        " (calls that failed so far), `verification` (what a look at the state showed) and `idempotency_key` (whether the provider's"
        " own mechanism was used) to be told whether to go on.",
        "",
        "A code is also known at the beginning of a text, as libraries pass it on: `invalid_grant: Token has been expired or revoked.`",
    )
    notes = Notes()
    yield from (
        "",
        "## Writes",
        "",
        "| provider | safe way to repeat a write | for | see whether it was done | source |",
        "|---|---|---|---|---|",
    )
    for name, write in SAFE_WRITES.items():
        how = f"{write.how} **Not this:** {write.not_this}" if write.not_this else write.how
        yield f"| {TITLES[name]} | {how} | {write.covers} | {write.state_check} | {notes.of(write.sources)} |"
    yield from (
        "",
        "## By provider",
        "",
        "The first row that fits counts: what the provider said before a bare status, and its own rows before those of"
        " [every provider](#every-provider). One thing comes before: an OAuth code that is never retried counts before a row of the"
        " provider's own that would retry.",
    )
    for family, rows in BY_PROVIDER.items():
        yield from ("", f"### {TITLES[family]}", "")
        yield from table(rows, notes)
    yield from ("", "### Every provider", "")
    yield from table(EVERYONES, notes)
    yield from ("", "## Sources", "")
    yield from notes.lines()


class Notes:
    """The pages that rows name, numbered in the order in which they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, sources: Sequence[str]) -> str:
        return ", ".join(self._one(source) for source in sources)

    def _one(self, source: str) -> str:
        if not source.startswith("https://"):
            return source
        return f"[{self._numbers.setdefault(source, len(self._numbers) + 1)}](#sources)"

    def lines(self) -> Iterator[str]:
        for source, number in self._numbers.items():
            yield f"{number}. <{source}>"


def retries_of(error_class: str, action: Action) -> str:
    if error_class == "partial_execution":
        return RETRIES["partial"]
    if error_class == "other":
        return "as the row says"
    policies: dict[Action, Policy] = {
        "refresh_once": "after_refresh",
        "wait_and_retry": "rate_limit",
        "retry_with_backoff": "upstream",
    }
    return RETRIES[policies.get(action, "never")]


def table(rows: Sequence[Row], notes: Notes) -> Iterator[str]:
    yield "| it says | class | what it means | do now | source |"
    yield "|---|---|---|---|---|"
    for row in rows:
        do = row.do or short(row.action)
        yield f"| {looks(row)} | `{row.error_class}` | {row.meaning} | {do} | {notes.of(row.sources)} |"


def looks(row: Row) -> str:
    said = [", ".join(f"`{code}`" for code in row.codes)] if row.codes else []
    if row.statuses and not row.codes:
        said.append(statuses(row.statuses))
    said += [" or ".join(f'"{phrase}"' for phrase in row.phrases)] if row.phrases else []
    said += ["with `Retry-After`, or nothing remaining"] if row.limited else []
    said += [OUTCOME_WORDS[outcome] for outcome in row.outcomes]
    return "; ".join(said) or "no answer"


OUTCOME_WORDS = {
    "missing": "2xx; the write is not there",
    "mismatch": "2xx; the write differs",
    "pending": "2xx; the write waits",
    "parts_failed": "2xx; some parts failed",
    "refused": "2xx with an error in the body",
    "unverified": "2xx for a write; nobody looked",
    "fine": "2xx",
}


def statuses(numbers: Sequence[int]) -> str:
    if len(numbers) == 100:
        return f"{numbers[0] // 100}xx"
    return ", ".join(str(number) for number in numbers)


def short(action: Action) -> str:
    """The action's first sentence: the whole of it is in the table of classes."""
    return ACTIONS[action].partition(". ")[0].rstrip(".") + "."


@click.command()
def playbook() -> None:
    """Print the playbook: what to do about each failure of each provider, with its source."""
    click.echo(page(), nl=False)


if __name__ == "__main__":
    playbook()
