"""The providers we know, one line each."""

from __future__ import annotations

from service import report
from service.providers.base import Provider
from service.providers.scalekit import Scalekit

PROVIDERS: dict[str, Provider] = {
    "scalekit": Scalekit(),
}
# What any of them, or a report, puts into `details`: a rule that reads another name is never told anything.
DETAILS: dict[str, str] = {
    **{name: holds for known in PROVIDERS.values() for name, holds in known.details.items()},
    **report.DETAILS,
}
