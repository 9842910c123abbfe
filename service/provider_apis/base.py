"""What an adapter of a provider's API promises: pages of events and accounts, one account's state now, and a link
to re-authorize it. All else only reads.

Every call raises DeliveryFailed and nothing else, after bounded tries of its own; no message holds a credential.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import httpx

    from service.settings import ProviderApi as Credentials


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAccount:
    """An account as the provider has it now. `kind` is what an event that gave it this status would mean to us;
    `status` None: the provider did not say. `body` is what it said, without anything secret."""

    account_id: str
    connection_id: str | None = None
    provider: str | None = None
    identifier: str | None = None
    status: str | None = None
    kind: str = "account.updated"
    updated_at: datetime | None = None
    body: bytes = field(default=b"{}", repr=False)


@dataclass(frozen=True, slots=True)
class ReauthorizationLink:
    """Whoever opens it authorizes as the account's user: it goes to one person, and into no log, row or error."""

    url: str = field(repr=False)
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class EventsPage:
    """Newest first. Each of `bodies` is an event in the shape of the provider's webhook, for `Provider.normalise`."""

    bodies: Sequence[bytes] = field(repr=False)
    next_page_token: str | None


@dataclass(frozen=True, slots=True)
class AccountsPage:
    accounts: Sequence[RemoteAccount]
    next_page_token: str | None


class ProviderApi(Protocol):
    @property
    def provider(self) -> str:
        """The name in `service/providers/`."""
        ...

    async def environment_id(self) -> str | None:
        """The environment these credentials are for, as events name it; None when nothing there tells it."""
        ...

    async def events_page(self, since: datetime, until: datetime, page_token: str | None) -> EventsPage: ...

    async def accounts_page(self, page_token: str | None) -> AccountsPage: ...

    async def account(self, account_id: str, *, tries_max: int | None = None) -> RemoteAccount | None:
        """None: the provider says that there is no such account. `tries_max`: fewer tries than the adapter's own."""
        ...

    async def reauthorization_link(self, account_id: str) -> ReauthorizationLink:
        """A fresh one each time, asked for once and never twice by itself: a person waits, and may ask again."""
        ...

    async def check(self) -> str:
        """One harmless call, for `doctor`; a sentence."""
        ...


class OpenApi(Protocol):
    def __call__(self, credentials: Credentials, http: httpx.AsyncClient) -> ProviderApi: ...
