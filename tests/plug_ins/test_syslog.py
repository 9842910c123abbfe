"""Syslog's own traps, against the strict receiver: escapes, reconnecting, what broke off, and certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import DeliveryFailed
from service.sinks.base import Sent
from service.sinks.syslog import Syslog, SyslogConfig
from tests.fakes.syslog import FakeSyslog, read
from tests.plug_ins.sink_cases import syslog
from tests.plug_ins.sink_cases.items import an_event, events, ids
from tests.plug_ins.sink_cases.syslog import papers, section, taken


@pytest.fixture
async def fake() -> AsyncIterator[FakeSyslog]:
    made = syslog.fake()
    async with made.serving():
        yield made


def sink_at(fake: FakeSyslog, **changes: Any) -> Syslog:
    return Syslog(SyslogConfig.model_validate(section(f"https://127.0.0.1:{fake.port}") | changes))


async def test_the_header_says_what_the_rfc_asks_for(fake: FakeSyslog) -> None:
    await sink_at(fake).send([an_event(7, kind="account.disconnected")])
    fake.settled()
    (message,) = fake.messages
    assert (message.facility, message.severity) == (10, 4)
    assert (message.at, message.host, message.app) == (
        "2026-11-20T10:00:00.123Z",
        "authwatch-1.example",
        "authwatch",
    )
    assert (message.kind, message.sd_id) == ("account.disconnected", "authwatch@32473")
    assert message.process.isdigit()
    assert message.data == {"eventId": an_event(7).id, "position": "7", "source": "scalekit", "format": "ocsf"}
    assert message.marked


async def test_what_may_be_set_of_it_is_set(fake: FakeSyslog) -> None:
    sink = sink_at(fake, facility=13, enterprise_number=51_000, byte_order_mark=False, format="raw")
    await sink.send([an_event(1)])
    fake.settled()
    (message,) = fake.messages
    assert (message.facility, message.sd_id, message.marked) == (13, "authwatch@51000", False)
    assert message.item["id"] == an_event(1).id


@pytest.mark.parametrize(
    "source", ['a"b', "a\\b", "a]b", '\\"]', "line\nbreak", "gr\u00fc\u00df \u2603", "tab\x7f\x9b"]
)
async def test_no_value_ends_its_parameter(fake: FakeSyslog, source: str) -> None:
    await sink_at(fake).send([an_event(1, source=source)])
    fake.settled()
    (message,) = fake.messages
    assert message.data["source"] == "".join(char if char.isprintable() else " " for char in source)


@pytest.mark.parametrize(
    ("kind", "msgid"), [("k" * 40, "k" * 32), ("alert.firing", "alert.firing"), ("two words", "two_words"), ("", "-")]
)
async def test_a_kind_becomes_a_msgid_of_32(fake: FakeSyslog, kind: str, msgid: str) -> None:
    await sink_at(fake).send([an_event(1, kind=kind)])
    fake.settled()
    assert [message.kind for message in fake.messages] == [msgid]


async def test_msg_len_counts_octets_and_not_characters(fake: FakeSyslog) -> None:
    items = [an_event(number, identifier="\u00fc\u2603" * 200 + "\n\n12 <34>1") for number in range(1, 4)]
    assert await sink_at(fake).send(items) == Sent(3)
    assert taken(fake) == ids(items)


async def test_an_item_of_exactly_the_bound_goes(fake: FakeSyslog) -> None:
    sink = sink_at(fake)
    short = len(sink._message(an_event(1, details={"note": ""})))
    fits, over = ([an_event(1, details={"note": "-" * (8192 - short + more)})] for more in (0, 1))
    assert await sink.send(fits) == Sent(1)
    assert "message_bytes_max is 8192" in (await sink.send(over)).poison[0].reason
    fake.settled()
    assert [message.octets for message in fake.messages] == [8192]


async def test_one_connection_serves_many_batches(fake: FakeSyslog) -> None:
    sink = sink_at(fake)
    for number in range(1, 6):
        await sink.send([an_event(number)])
    assert taken(fake) == ids(events(5))
    assert fake.connections == 1


async def test_a_connection_that_ended_while_idle_is_not_written_to(fake: FakeSyslog) -> None:
    sink = sink_at(fake)
    await sink.send([an_event(1)])
    fake.settled()
    fake.hang_up()
    assert await sink.send([an_event(2)]) == Sent(1)
    assert taken(fake) == ids(events(2))
    assert fake.connections == 2


async def test_what_broke_off_goes_again_whole_and_its_ids_show_the_repeats(fake: FakeSyslog) -> None:
    sink, items = sink_at(fake), events(500)
    fake.abort_after = 100_000
    with pytest.raises(DeliveryFailed) as caught:
        await sink.send(items)
    assert (caught.value.code, caught.value.ambiguous, caught.value.permanent) == ("disconnected", True, False)
    before = taken(fake)
    assert before == ids(items)[: len(before)]
    assert await sink.send(items) == Sent(500)
    assert taken(fake) == before + ids(items)
    assert fake.connections == 2


async def test_a_receiver_that_reads_nothing_is_waited_for_and_given_up(fake: FakeSyslog) -> None:
    fake.mood = "deaf"
    with pytest.raises(DeliveryFailed) as caught:
        await sink_at(fake, timeout_seconds=0.5).send(events(500))
    assert (caught.value.code, caught.value.ambiguous) == ("timeout", True)
    assert fake.messages == []


async def test_check_leaves_the_kept_connection_alone(fake: FakeSyslog) -> None:
    sink = sink_at(fake)
    await sink.send([an_event(1)])
    assert "TLSv1.3" in await sink.check()
    await sink.send([an_event(2)])
    assert taken(fake) == ids(events(2))
    assert fake.connections == 2


async def test_closing_it_tells_the_receiver(fake: FakeSyslog) -> None:
    sink = sink_at(fake)
    await sink.send([an_event(1)])
    (listening,) = fake.open
    await sink.aclose()
    async with asyncio.timeout(5):
        await asyncio.wait_for(asyncio.shield(_ended(fake, listening)), 5)
    await sink.aclose()
    assert await sink.send([an_event(2)]) == Sent(1)


async def _ended(fake: FakeSyslog, listening: Any) -> None:
    loop = listening.ended.get_loop()

    async def wait() -> None:
        await listening.ended

    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(wait(), loop))


async def test_a_certificate_of_ours_is_shown_where_it_is_wanted(fake: FakeSyslog) -> None:
    fake.want_certificate()
    ours = papers().ours
    files = {"client_certificate_file": str(ours.certificate), "client_key_file": str(ours.key)}
    assert await sink_at(fake, **files).send([an_event(1)]) == Sent(1)
    assert taken(fake) == ids(events(1))


async def test_a_receiver_that_refuses_our_certificate_after_the_handshake_is_heard(fake: FakeSyslog) -> None:
    """OpenSSL's own server says why; under TLS 1.3 the handshake is over for us by then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(papers().receiver.certificate, papers().receiver.key)
    context.load_verify_locations(papers().authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            taken, _ = listening.accept()
            with taken, pytest.raises(ssl.SSLError):
                context.wrap_socket(taken, server_side=True)

        sink = sink_at(fake, port=listening.getsockname()[1])
        serving = asyncio.create_task(asyncio.to_thread(serve))
        with pytest.raises(DeliveryFailed) as caught:
            await sink.check()
        await serving
    assert (caught.value.code, caught.value.permanent) == ("certificate_refused", True)
    assert "client_certificate_file" in str(caught.value)


async def test_the_name_may_go_unchecked_but_never_the_signer(fake: FakeSyslog) -> None:
    fake.use(papers().elsewhere)
    assert await sink_at(fake, server_name="elsewhere.example").send([an_event(1)]) == Sent(1)
    assert await sink_at(fake, check_server_name=False).send([an_event(2)]) == Sent(1)
    fake.use(papers().stranger)
    with pytest.raises(DeliveryFailed, match="ca_file"):
        await sink_at(fake, check_server_name=False).send([an_event(3)])
    assert taken(fake) == ids(events(2))


async def test_a_key_that_does_not_fit_its_certificate_is_told(fake: FakeSyslog) -> None:
    files = {
        "client_certificate_file": str(papers().ours.certificate),
        "client_key_file": str(papers().receiver.key),
    }
    with pytest.raises(DeliveryFailed, match="no PEM file that fits") as caught:
        await sink_at(fake, **files).send([an_event(1)])
    assert caught.value.permanent


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ValidationError, match="client_key_file needs"):
        SyslogConfig(host="siem.example", client_key_file="ours.key")


async def test_a_text_that_is_no_unicode_is_put_aside(fake: FakeSyslog) -> None:
    items = [an_event(1), replace(an_event(2), source="\ud800"), an_event(3)]
    sent = await sink_at(fake).send(items)
    assert (sent.accepted, [(one.index, one.ours) for one in sent.poison]) == (2, [(1, True)])
    assert taken(fake) == [items[0].id, items[2].id]


@pytest.mark.parametrize(
    "raw",
    [
        b'<86>1 2026-11-20T10:00:00Z h a 1 k [x@1 a="b"c"] {}',
        b'<86>1 2026-11-20T10:00:00Z h a 1 k [x@1 a="b]"] {}',
        b"<86>1 2026-11-20T10:00:00Z h a 1 k [x@1] no json",
        b"<192>1 2026-11-20T10:00:00Z h a 1 k [x@1] {}",
        b"<86>1 2026-11-20 10:00:00 h a 1 k [x@1] {}",
        b"<86>1 2026-11-20T10:00:00Z h a 1 " + b"k" * 33 + b" [x@1] {}",
    ],
)
def test_the_receiver_of_these_tests_is_strict(raw: bytes) -> None:
    with pytest.raises((AssertionError, ValueError)):
        read(raw)
