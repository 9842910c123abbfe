"""Syslog over TLS against a real rsyslog: Debian's, on PATH or unpacked by `make test-sinks` into .cache/rsyslog."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.errors import DeliveryFailed
from service.sinks.base import Sent
from service.sinks.syslog import Syslog, SyslogConfig
from tests.certificates import Authority, Pair
from tests.plug_ins.sink_cases.items import an_event, events, ids

UNPACKED = Path(__file__).parents[2] / ".cache" / "rsyslog" / "unpacked"
WAIT_SECONDS_MAX = 20.0
# %msg% is kept as it came, and JSON says where a line of the file ends.
CONFIG = """
global(
  workDirectory="{folder}"
  maxMessageSize="8k"
  defaultNetstreamDriver="gtls"
  defaultNetstreamDriverCAFile="{ca}"
  defaultNetstreamDriverCertFile="{certificate}"
  defaultNetstreamDriverKeyFile="{key}"
)
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" {peers})
template(name="line" type="list") {{
  constant(value="{{")
  property(outname="priority" name="pri" format="jsonf")
  constant(value=",")
  property(outname="at" name="timereported" dateFormat="rfc3339" format="jsonf")
  constant(value=",")
  property(outname="host" name="hostname" format="jsonf")
  constant(value=",")
  property(outname="app" name="app-name" format="jsonf")
  constant(value=",")
  property(outname="kind" name="msgid" format="jsonf")
  constant(value=",")
  property(outname="data" name="structured-data" format="jsonf")
  constant(value=",")
  property(outname="message" name="msg" format="jsonf")
  constant(value="}}\n")
}}
ruleset(name="siem") {{
  action(type="omfile" file="{folder}/siem.ndjson" template="line" asyncWriting="off")
}}
input(type="imtcp" port="0" listenPortFileName="{folder}/port" address="127.0.0.1" ruleset="siem")
"""


def found() -> tuple[Path, Path, dict[str, str]] | None:
    """(rsyslogd, the folder of its modules, its environment); None where there is none that speaks TLS."""
    for root in (UNPACKED, Path("/")):
        binary = root / "usr/sbin/rsyslogd"
        if not binary.exists() and root == Path("/") and (on_path := shutil.which("rsyslogd")):
            binary = Path(on_path)
        for modules in root.glob("usr/lib/*/rsyslog"):
            if binary.exists() and (modules / "lmnsd_gtls.so").exists():
                return binary, modules, {**os.environ, "LD_LIBRARY_PATH": str(modules.parent)}
    return None


pytestmark = pytest.mark.skipif(
    found() is None, reason="no rsyslog with rsyslog-gnutls here; `make test-sinks` fetches it, on Debian and Ubuntu"
)


@dataclass
class Rsyslog:
    folder: Path
    authority: Authority
    ours: Pair
    peers: str
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    def start(self) -> None:
        given = found()
        assert given is not None
        binary, modules, env = given
        receiver = self.authority.issue("rsyslog.example", "127.0.0.1")
        config = CONFIG.format(
            folder=self.folder,
            ca=self.authority.file,
            certificate=receiver.certificate,
            key=receiver.key,
            peers=self.peers,
        )
        if self.port:  # the same as before, as a receiver that comes back has it
            config = config.replace('port="0"', f'port="{self.port}"')
        path = self.folder / "rsyslog.conf"
        path.write_text(config)
        with (self.folder / "said").open("ab") as said:
            self.process = subprocess.Popen(
                [binary, "-n", "-f", path, "-i", self.folder / "pid", "-M", modules], env=env, stdout=said, stderr=said
            )
        if not self.port:
            port = self.folder / "port"
            self.port = int(self._wait(lambda: port.exists() and port.read_text()))
        self._wait(self._listens)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(WAIT_SECONDS_MAX)
            self.process = None

    def lines(self, count: int) -> list[dict[str, Any]]:
        """Waits until it has written so many."""
        file = self.folder / "siem.ndjson"
        self._wait(lambda: file.exists() and file.read_bytes().count(b"\n") >= count)
        return [json.loads(line) for line in file.read_text().splitlines()]

    def _listens(self) -> bool:
        with socket.socket() as trying:
            return trying.connect_ex(("127.0.0.1", self.port)) == 0

    def _wait(self, done: Any) -> Any:
        """A process of somebody else's, which tells nobody: it is looked at."""
        until = time.monotonic() + WAIT_SECONDS_MAX
        while not (value := done()):
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "said").read_text()
            assert time.monotonic() < until, (self.folder / "said").read_text()
            time.sleep(0.02)
        return value

    def sink(self, **changes: Any) -> Syslog:
        section = {
            "host": "127.0.0.1",
            "port": self.port,
            "ca_file": str(self.authority.file),
            "client_certificate_file": str(self.ours.certificate),
            "client_key_file": str(self.ours.key),
            "hostname": "authwatch-1.example",
        }
        return Syslog(SyslogConfig.model_validate(section | changes))


@pytest.fixture
def rsyslog(tmp_path: Path) -> Iterator[Rsyslog]:
    """It believes only the client whose certificate names authwatch.example."""
    authority = Authority(tmp_path)
    running = Rsyslog(
        tmp_path,
        authority,
        authority.issue("authwatch.example"),
        'streamDriver.authMode="x509/name" permittedPeer=["authwatch.example"]',
    )
    running.start()
    yield running
    running.stop()


def uids(lines: list[dict[str, Any]]) -> list[str]:
    return [json.loads(line["message"].removeprefix("\ufeff"))["metadata"]["uid"] for line in lines]


async def test_rsyslog_reads_what_the_sink_writes(rsyslog: Rsyslog) -> None:
    sink = rsyslog.sink()
    items = [*events(600), an_event(601, kind="account.disconnected", source='a"b\\c]d', identifier="\u00fc\n\u2603")]
    for start in range(0, len(items), 500):
        await sink.send(items[start : start + 500])
    lines = rsyslog.lines(601)
    assert uids(lines) == ids(items)
    last = lines[-1]
    assert (last["priority"], last["app"], last["kind"]) == ("84", "authwatch", "account.disconnected")
    assert (last["host"], last["at"]) == ("authwatch-1.example", "2026-11-20T10:00:00.123Z")
    assert last["data"].startswith(f'[authwatch@32473 eventId="{items[-1].id}" position="601" source="a\\"b\\\\c\\]d"')
    await sink.aclose()


async def test_an_item_of_the_bound_arrives_whole(rsyslog: Rsyslog) -> None:
    sink = rsyslog.sink()
    short = len(sink._message(an_event(1, details={"note": ""})))
    items = [an_event(1, details={"note": "-" * (8192 - short)}), an_event(2)]
    assert await sink.send(items) == Sent(2)
    assert uids(rsyslog.lines(2)) == ids(items)
    await sink.aclose()


async def test_a_restart_between_batches_costs_nothing(rsyslog: Rsyslog) -> None:
    sink = rsyslog.sink()
    await sink.send(events(3))
    rsyslog.lines(3)
    rsyslog.stop()
    with pytest.raises(DeliveryFailed) as caught:
        await sink.send([an_event(4)])
    assert (caught.value.code, caught.value.ambiguous) == ("connect_failed", False)
    rsyslog.start()
    assert await sink.send([an_event(4)]) == Sent(1)
    assert uids(rsyslog.lines(4)) == ids(events(4))
    await sink.aclose()


async def test_check_is_a_handshake_and_leaves_no_line(rsyslog: Rsyslog) -> None:
    sink = rsyslog.sink()
    assert "accepts a connection (TLSv1." in await sink.check()
    await sink.send([an_event(1)])
    assert uids(rsyslog.lines(1)) == ids([an_event(1)])
    await sink.aclose()


async def test_who_is_not_believed_is_told_before_anything_is_sent(rsyslog: Rsyslog, tmp_path: Path) -> None:
    other = rsyslog.authority.issue("stranger.example")
    files = {"client_certificate_file": str(other.certificate), "client_key_file": str(other.key)}
    for sink in (rsyslog.sink(**files), rsyslog.sink(client_certificate_file=None, client_key_file=None)):
        with pytest.raises(DeliveryFailed, match="client_certificate_file") as caught:
            await sink.send(events(3))
        assert not caught.value.ambiguous
    with pytest.raises(DeliveryFailed, match="server_name") as caught:
        await rsyslog.sink(server_name="elsewhere.example").send(events(3))
    assert not (tmp_path / "siem.ndjson").exists()
