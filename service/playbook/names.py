"""Which provider is meant, in whatever spelling: `GOOGLE_ADS`, `google-calendar`, `gmail`, `Jira Cloud`."""

from __future__ import annotations

UNKNOWN = "unknown"
NAME_CHARS_MAX = 200
# Letters and digits only, in lower case; the longest that fits counts. `box` and `graph` are words of other names too,
# so they must be the whole name.
BEGINNINGS: dict[str, str] = {
    "google": "google",
    "gmail": "google",
    "gdrive": "google",
    "gcal": "google",
    "gsuite": "google",
    "youtube": "google",
    "bigquery": "google",
    "salesforce": "salesforce",
    "sfdc": "salesforce",
    "slack": "slack",
    "github": "github",
    "atlassian": "atlassian",
    "jira": "atlassian",
    "confluence": "atlassian",
    "auth0": "auth0",
    "microsoft": "microsoft",
    "msgraph": "microsoft",
    "msteams": "microsoft",
    "azure": "microsoft",
    "entra": "microsoft",
    "office365": "microsoft",
    "o365": "microsoft",
    "outlook": "microsoft",
    "onedrive": "microsoft",
    "onenote": "microsoft",
    "sharepoint": "microsoft",
    "stripe": "stripe",
}
WHOLE: dict[str, str] = {
    "box": "box",
    "boxcom": "box",
    "boxoauth": "box",
    "boxapi": "box",
    "boxoauth2": "box",
    "teams": "microsoft",
    "ms365": "microsoft",
    "m365": "microsoft",
    "graph": "microsoft",
    "aad": "microsoft",
}
# Not what they begin like.
OTHERS = ("azuredevops",)
PRODUCTS: tuple[tuple[str, str, str], ...] = (
    ("google", "gmail", "gmail"),
    ("google", "mail", "gmail"),
    ("google", "calendar", "google-calendar"),
    ("google", "gcal", "google-calendar"),
    ("google", "drive", "google-drive"),
    ("google", "docs", "google-drive"),
    ("microsoft", "calendar", "microsoft-calendar"),
)


def plain(name: object) -> str:
    if not isinstance(name, str):
        return ""
    return "".join(char for char in name[:NAME_CHARS_MAX].lower() if char.isascii() and char.isalnum())


def family_of(name: object) -> str:
    """`google`, `salesforce`, ... or `unknown`: one of a fixed list, whatever was sent."""
    written = plain(name)
    if written in WHOLE:
        return WHOLE[written]
    if written.startswith(OTHERS):
        return UNKNOWN
    fitting = [beginning for beginning in BEGINNINGS if written.startswith(beginning)]
    return BEGINNINGS[max(fitting, key=len)] if fitting else UNKNOWN


def product_of(name: object) -> str:
    """The product within the family where its API matters for writes, else the family itself."""
    written, family = plain(name), family_of(name)
    for of, part, product in PRODUCTS:
        if of == family and part in written:
            return product
    return family
