"""The playbook's rows in the order in which they are asked: the first that fits is the answer.

What was said comes before bare statuses, and a provider's own rows before those of everyone: a 403 with `invalid_grant` is
no rate limit, whatever its headers say.
"""

from __future__ import annotations

from service.playbook.rows_google import GOOGLE, SALESFORCE
from service.playbook.rows_microsoft import MICROSOFT
from service.playbook.rows_more import ATLASSIAN, AUTH0, BOX, STRIPE
from service.playbook.rows_slack import GITHUB, SLACK
from service.playbook.standards import OAUTH, OUTCOMES, STATUSES
from service.playbook.words import ANY, Row

# Slack's and Stripe's codes are Slack's and Stripe's alone; the OAuth codes are everyone's.
BY_PROVIDER: dict[str, tuple[Row, ...]] = {
    "google": GOOGLE,
    "salesforce": SALESFORCE,
    "slack": SLACK,
    "github": GITHUB,
    "box": BOX,
    "atlassian": ATLASSIAN,
    "auth0": AUTH0,
    "microsoft": MICROSOFT,
    "stripe": STRIPE,
}
EVERYONES: tuple[Row, ...] = (*OAUTH, *STATUSES, *OUTCOMES)
ROWS: tuple[Row, ...] = (*(row for rows in BY_PROVIDER.values() for row in rows), *EVERYONES)
KNOWN_CODES: frozenset[str] = frozenset(code for row in ROWS for code in row.folded)


def in_order(own: tuple[Row, ...]) -> tuple[Row, ...]:
    said = tuple(row for row in own if row.codes or row.phrases)
    return (*said, *OAUTH, *(row for row in own if row not in said), *STATUSES, *OUTCOMES)


IN_ORDER: dict[str, tuple[Row, ...]] = {family: in_order(rows) for family, rows in BY_PROVIDER.items()}
OF_ANY = in_order(())
NEVER_CODES: frozenset[str] = frozenset(code for row in OAUTH if row.policy == "never" for code in row.folded)


def firm(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Those for the codes of OAuth's that are never retried, whatever else was said beside them."""
    return tuple(row for row in rows if row.policy == "never" and row.folded & NEVER_CODES)


FIRM: dict[str, tuple[Row, ...]] = {family: firm(rows) for family, rows in IN_ORDER.items()}
FIRM_OF_ANY = firm(OF_ANY)


def rows_for(family: str) -> tuple[Row, ...]:
    """Those to be asked for a provider of this family (`names.family_of`), in order."""
    return IN_ORDER.get(family, OF_ANY)


def firm_rows_for(family: str) -> tuple[Row, ...]:
    """Those of `rows_for` that no row which retries may come before."""
    return FIRM.get(family, FIRM_OF_ANY)


__all__ = ["ANY", "BY_PROVIDER", "EVERYONES", "KNOWN_CODES", "ROWS", "firm_rows_for", "rows_for"]
