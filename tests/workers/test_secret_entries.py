"""A process that takes a changed secret says so on the audit log."""

from __future__ import annotations

import base64
from pathlib import Path

from service.reload import Watch
from service.sources import fingerprint
from tests.workers.house import open_house


async def test_a_secret_put_into_the_file_and_one_taken_out_are_entries(database_url: str, tmp_path: Path) -> None:
    keys = [bytes([number]) * 32 for number in (1, 2)]
    old, new = ("whsec_" + base64.b64encode(key).decode() for key in keys)
    file = tmp_path / "secret"
    file.write_text(old)
    variables = {"SCALEKIT_WEBHOOK_SECRET_FILE": str(file)}
    async with open_house(database_url, tmp_path / "house", variables=variables) as house:
        watch = Watch(house.runtime, variables)
        for text in (old, f"{new},{old}", new):
            file.write_text(text)
            await watch.look()
            await watch.look()
        rows = await house.rows("SELECT details FROM events WHERE kind = 'audit' ORDER BY position")
    said = [row["details"] for row in rows]
    assert [(one["action"], one["reason"]) for one in said] == [
        ("secret.add", f"fingerprint {fingerprint(keys[1])}"),
        ("secret.remove", f"fingerprint {fingerprint(keys[0])}"),
    ]
    assert old not in str(said)
    assert new not in str(said)
