"""AWS Signature Version 4 by botocore: its signer and its search for credentials, without its HTTP client and its retries.

botocore is 21 MB, most of it descriptions of services, so it is an extra of ours: `pip install 'authwatch[s3]'`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.errors import ConfigError, DeliveryFailed


@dataclass(frozen=True, slots=True)
class Credentials:
    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class Signer:
    """For S3 in one region. Without `given`, botocore looks where the AWS tools look: environment, shared files, and the
    roles of containers and machines."""

    def __init__(self, region: str, given: Credentials | None) -> None:
        try:
            import botocore.auth
        except ImportError:
            raise ConfigError("the sink kind `s3` needs botocore: pip install 'authwatch[s3]'") from None
        logging.getLogger("botocore").setLevel(logging.WARNING)  # its debug log holds the session token
        self._auth: Any = botocore.auth.S3SigV4Auth
        self._region = region
        self._given = given
        self._found: Any = None

    async def sign(self, method: str, url: str, content: bytes, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers to send, those given included. Raises DeliveryFailed where there are no credentials."""
        return await asyncio.to_thread(self._sign, method, url, content, headers)

    def _sign(self, method: str, url: str, content: bytes, headers: Mapping[str, str]) -> dict[str, str]:
        """In a thread: hashing takes its time, and looking for credentials may go over the network."""
        from botocore.awsrequest import AWSRequest

        request = AWSRequest(method, url, headers=dict(headers), data=content)
        self._auth(self._credentials(), "s3", self._region).add_auth(request)
        return {name.lower(): value for name, value in request.headers.items()}

    def _credentials(self) -> Any:
        from botocore import credentials, session
        from botocore.exceptions import BotoCoreError

        if self._given is not None:
            return credentials.Credentials(
                self._given.access_key_id, self._given.secret_access_key, self._given.session_token
            )
        try:
            if self._found is None:
                self._found = session.Session().get_credentials()
            if self._found is not None:
                return self._found.get_frozen_credentials()  # those that run out are renewed here
        except BotoCoreError as exc:
            raise DeliveryFailed(
                f"AWS credentials could not be had: {type(exc).__name__}; see the AWS settings of this process's environment",
                code="credentials_failed",
            ) from None
        raise DeliveryFailed(
            "no AWS credentials were found; set access_key_id and secret_access_key, or AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY in the environment, or give the machine a role",
            code="credentials_missing",
            permanent=True,
        )
