"""The providers whose API we can ask, one line each; the key is the provider's name in `service/providers/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from service.provider_apis.base import OpenApi, ProviderApi
from service.provider_apis.scalekit import ScalekitApi
from service.settings import Settings

if TYPE_CHECKING:
    import httpx

PROVIDER_APIS: Mapping[str, OpenApi] = {
    "scalekit": ScalekitApi.open,
}


def open_api(settings: Settings, http: httpx.AsyncClient) -> ProviderApi | None:
    """The API that the credentials in the settings are for; None without credentials."""
    # The settings know one set of credentials, SCALEKIT_*, so far.
    return PROVIDER_APIS["scalekit"](settings.provider_api, http) if settings.provider_api is not None else None


def sources_of(settings: Settings, provider: str) -> list[str]:
    """The sources that an API of this provider can recover for."""
    return [name for name, source in settings.sources.items() if source.provider == provider]
