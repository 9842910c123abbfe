"""The providers we know, one line each."""

from __future__ import annotations

from service.providers.base import Provider
from service.providers.scalekit import Scalekit

PROVIDERS: dict[str, Provider] = {
    "scalekit": Scalekit(),
}
