"""`POST /slack/interactions`: Slack's clicks, authenticated by Slack's signature alone. What becomes of one is
`service/interactions.py`."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from service.api.http import read_body
from service.clicks import PATH as PATH
from service.errors import NotFound
from service.interactions import Interactions

BODY_BYTES_MAX = 256 * 1024  # Slack sends the whole message along, of at most 50 blocks


async def interact(request: Request) -> Response:
    """200 and nothing else once a click is done or goes on by itself; 401 whatever the bytes; 404 without a secret."""
    interactions: Interactions = request.app.state.interactions
    if not interactions.switched_on:
        raise NotFound("clicks are switched off here; set SLACK_SIGNING_SECRET", code="clicks_off")
    body = await read_body(request, bytes_max=BODY_BYTES_MAX)
    await interactions.take(request.scope["headers"], body, datetime.now(UTC))
    return Response()
