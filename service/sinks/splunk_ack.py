"""Splunk's indexer acknowledgement: whether what HEC accepted has been indexed, asked for until all of it has.

Splunk Enterprise only; Splunk Cloud has it for Kinesis Firehose alone. What is not acknowledged in time is sent again, and
may then be there twice: its event id tells.
Source: facts/sinks.md A2, and Splunk's manual "About HTTP Event Collector Indexer Acknowledgment".
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import NoReturn

import httpx

from service.errors import DeliveryFailed
from service.outbound import Response, post

POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.2, 5.0
ASK_SECONDS_MAX = 10.0
ACK_DISABLED_CODE = 14

Raising = Callable[[Response, int | None], NoReturn]


class Acknowledgements:
    """Of one sink and one batch at a time; the channel lives as long as the sink."""

    def __init__(self, client: httpx.AsyncClient, url: str, seconds_max: float) -> None:
        self._client, self._url, self._seconds_max = client, url, seconds_max
        self._waiting: set[int] = set()
        self._channel = str(uuid.uuid4())

    @property
    def headers(self) -> dict[str, str]:
        return {"x-splunk-request-channel": self._channel}

    def note(self, response: Response) -> None:
        """What was accepted now and is to be waited for. Raises DeliveryFailed where Splunk gave no number for it."""
        number = _read(response).get("ackId")
        if not isinstance(number, int) or isinstance(number, bool):
            raise DeliveryFailed(
                f"{response.host} accepted events without a number to ask by: indexer acknowledgement is off for this"
                " token; switch it on in Splunk, or off here",
                code="acknowledgement_off",
                permanent=True,
                status=response.status,
            )
        self._waiting.add(number)

    async def wait(self, headers: Mapping[str, str], fail: Raising) -> None:
        """Until all is indexed. Raises DeliveryFailed, ambiguous, where that takes too long."""
        until, pause = time.monotonic() + self._seconds_max, POLL_SECONDS_MIN
        try:
            while self._waiting:
                self._waiting -= await self._ask(headers, fail)
                if not self._waiting:
                    return
                if time.monotonic() + pause > until:
                    raise DeliveryFailed(
                        f"Splunk has not indexed what it accepted within {self._seconds_max:g} s; it is sent again, and"
                        " may then be there twice",
                        code="unacknowledged",
                        ambiguous=True,
                    )
                await asyncio.sleep(pause)
                pause = min(pause * 2, POLL_SECONDS_MAX)
        finally:
            self._waiting.clear()  # what is sent again has other numbers

    async def check(self, headers: Mapping[str, str], fail: Raising) -> None:
        """Whether the token has acknowledgement at all."""
        self._done(await self._post(headers, []), fail)

    async def _ask(self, headers: Mapping[str, str], fail: Raising) -> set[int]:
        """The numbers that are done. A Splunk that is away just now is asked again."""
        try:
            response = await self._post(headers, sorted(self._waiting))
        except DeliveryFailed as failure:
            if failure.permanent:
                raise
            return set()
        if response.status in (408, 425, 429) or response.status >= 500:
            return set()
        return self._done(response, fail)

    def _done(self, response: Response, fail: Raising) -> set[int]:
        answer = _read(response)
        said = answer.get("acks")
        if response.status != 200 or not isinstance(said, dict):
            code = answer.get("code")
            fail(response, code if isinstance(code, int) and not isinstance(code, bool) else None)
        return {int(number) for number, done in said.items() if done is True and number.isdecimal()}

    async def _post(self, headers: Mapping[str, str], numbers: list[int]) -> Response:
        return await post(
            self._client,
            self._url,
            content=json.dumps({"acks": numbers}).encode(),
            headers=headers,
            timeout_seconds=min(ASK_SECONDS_MAX, self._seconds_max),
        )


def _read(response: Response) -> dict[str, object]:
    try:
        answer = json.loads(response.body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
