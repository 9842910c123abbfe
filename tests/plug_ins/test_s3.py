"""S3's own traps: which key a batch gets, what a repeat of it does, where the keys come from."""

from __future__ import annotations

import gzip
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service import outbound
from service.errors import ConfigError, DeliveryFailed
from service.sinks.base import Sent
from service.sinks.s3 import S3, S3Config, key_of
from tests.fakes.front import Front, standing
from tests.fakes.hec import Scripted
from tests.fakes.s3 import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, FakeS3
from tests.plug_ins.sink_cases.items import an_event, events, ids, sized
from tests.plug_ins.sink_cases.s3 import section


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with standing() as front:
        yield front


@pytest.fixture
def fake(front: Front) -> FakeS3:
    made = FakeS3()
    front.app = made.app
    return made


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with outbound.open_client() as client:
        yield client


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Nothing of this machine's AWS settings counts, and no metadata address is asked."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return monkeypatch


def sink_at(front: Front, http: httpx.AsyncClient, **changes: Any) -> S3:
    return S3(S3Config.model_validate(section(front.url) | changes), http)


def without_keys(front: Front) -> dict[str, Any]:
    return {name: value for name, value in section(front.url).items() if "key" not in name}


def test_the_key_says_the_day_and_the_ends() -> None:
    key = key_of(events(3), "authwatch", "ocsf")
    start = "authwatch/2026/11/20/0000000000000000001-0000000000000000003-"
    assert key.startswith(start)
    assert key.endswith(".ocsf.ndjson.gz")
    assert key == key_of(events(3), "authwatch", "ocsf")


def test_the_day_is_the_first_ones_in_utc() -> None:
    late = datetime(2026, 11, 21, 1, 30, tzinfo=timezone(timedelta(hours=3)))  # 22:30 of the 20th
    assert key_of([an_event(1, received_at=late)], "", "raw").startswith("2026/11/20/")


def test_what_is_not_the_same_has_another_key() -> None:
    whole = key_of(events(3), "p", "ocsf")
    with_a_hole = [events(3)[0], events(3)[2]]
    restored = [*events(2), replace(an_event(3), id="019357f0-0000-7000-8000-999999999999")]
    others = [key_of(items, "p", "ocsf") for items in (events(2), events(4), with_a_hole, restored)]
    assert len({whole, *others, key_of(events(3), "p", "ecs"), key_of(events(3), "q", "ocsf")}) == 7


def test_keys_sort_as_the_log_does() -> None:
    keys = [key_of([an_event(number)], "p", "ocsf") for number in (9, 10, 99, 100_000)]
    assert keys == sorted(keys)


async def test_a_repeat_is_asked_for_and_is_no_second_object(
    fake: FakeS3, front: Front, http: httpx.AsyncClient
) -> None:
    for _ in range(3):
        assert await sink_at(front, http).send(events(5)) == Sent(5)
    assert len(fake.puts) == 3
    assert len(set(fake.puts)) == len(fake.objects) == 1


async def test_another_cut_holds_the_items_twice(fake: FakeS3, front: Front, http: httpx.AsyncClient) -> None:
    """As when the breaker probes with few items what may have arrived with many: docs/siem.md says so."""
    sink = sink_at(front, http)
    await sink.send(events(5))
    await sink.send(events(2))
    held = [line["metadata"]["uid"] for line in fake.lines]
    assert held == ids(events(5)) + ids(events(2))


async def test_a_store_without_conditions_is_overwritten_with_the_same(
    fake: FakeS3, front: Front, http: httpx.AsyncClient
) -> None:
    sink = sink_at(front, http, conditional_writes=False)
    await sink.send(events(5))
    (stored,) = fake.objects.values()
    await sink.send(events(5))
    assert [*fake.objects.values()] == [stored]


async def test_a_412_that_was_not_asked_for_is_no_yes(fake: FakeS3, front: Front, http: httpx.AsyncClient) -> None:
    fake.always = Scripted(412, b"")
    with pytest.raises(DeliveryFailed) as caught:
        await sink_at(front, http, conditional_writes=False).send(events(2))
    assert caught.value.code == "http_412"


async def test_one_object_is_bounded_and_what_went_is_not_sent_again(
    fake: FakeS3, front: Front, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.sinks.s3.OBJECT_BYTES_MAX", 400_000)
    items = [sized(number, 75_000) for number in range(1, 8)]
    fake.break_after = 1
    sent = await sink_at(front, http).send(items)
    assert sent.upto is not None
    assert 0 < sent.upto < len(items)
    assert (sent.accepted, sent.in_doubt) == (sent.upto, len(items) - sent.upto)
    assert await sink_at(front, http).send(items[sent.upto :]) == Sent(len(items) - sent.upto)
    assert max(len(text) for text in fake.texts) <= 400_000
    assert [line["metadata"]["uid"] for line in fake.lines] == ids(items)


async def test_a_proxy_that_takes_less_gets_halves(fake: FakeS3, front: Front, http: httpx.AsyncClient) -> None:
    await sink_at(front, http).send(events(2))
    (stored,) = fake.objects.values()
    fake.objects.clear()
    fake.body_bytes_max = len(stored)
    assert await sink_at(front, http).send(events(200)) == Sent(200)
    assert [line["metadata"]["uid"] for line in fake.lines] == ids(events(200))


@pytest.mark.parametrize("prefix", ["", "/authwatch/", "lake/source=authwatch", "it's(new)!_.*"])
async def test_a_prefix_is_signed_as_it_is_sent(
    fake: FakeS3, front: Front, http: httpx.AsyncClient, prefix: str
) -> None:
    assert await sink_at(front, http, prefix=prefix).send(events(1)) == Sent(1)
    (key,) = fake.objects
    assert key == key_of(events(1), prefix.strip("/"), "ocsf")


async def test_the_object_is_gzip_under_that_name_and_nothing_else(
    fake: FakeS3, front: Front, http: httpx.AsyncClient
) -> None:
    await sink_at(front, http).send(events(3))
    (stored,) = fake.objects.values()
    assert gzip.decompress(stored).count(b"\n") == 3
    assert stored[4:8] == b"\0\0\0\0", "no time of packing"


async def test_who_may_only_write_passes_check(fake: FakeS3, front: Front, http: httpx.AsyncClient) -> None:
    fake.deny = frozenset({"GET"})
    assert "may not list" in await sink_at(front, http).check()
    assert await sink_at(front, http).send(events(1)) == Sent(1)


async def test_who_may_not_write_is_told_what_to_allow(fake: FakeS3, front: Front, http: httpx.AsyncClient) -> None:
    fake.deny = frozenset({"PUT"})
    with pytest.raises(DeliveryFailed, match="s3:PutObject") as caught:
        await sink_at(front, http).send(events(1))
    assert (caught.value.permanent, caught.value.status) == (True, 403)


async def test_keys_of_the_environment_do(
    fake: FakeS3, front: Front, http: httpx.AsyncClient, no_aws: pytest.MonkeyPatch
) -> None:
    no_aws.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
    assert await S3(S3Config.model_validate(without_keys(front)), http).send(events(1)) == Sent(1)


async def test_without_any_keys_it_says_where_to_put_them(
    fake: FakeS3, front: Front, http: httpx.AsyncClient, no_aws: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeliveryFailed, match="set access_key_id") as caught:
        await S3(S3Config.model_validate(without_keys(front)), http).check()
    assert (caught.value.code, caught.value.permanent) == ("credentials_missing", True)
    assert fake.puts == []


async def test_the_signer_logs_no_key(
    fake: FakeS3, front: Front, http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    """botocore writes what it signs into its debug log."""
    caplog.set_level(logging.DEBUG)
    token = "a-session-token-of-the-tests"
    await sink_at(front, http, session_token=token).send(events(1))
    assert not [secret for secret in (SECRET_ACCESS_KEY, token) if secret in caplog.text]


def test_where_it_goes() -> None:
    client: Any = None
    base = {"bucket": BUCKET, "region": "eu-west-1", "access_key_id": "A", "secret_access_key": "S"}

    def url(**more: Any) -> str:
        return S3(S3Config.model_validate(base | more), client)._url

    assert url() == f"https://{BUCKET}.s3.eu-west-1.amazonaws.com"
    assert url(path_style=True) == f"https://s3.eu-west-1.amazonaws.com/{BUCKET}"
    assert url(endpoint_url="https://minio.example:9000/") == f"https://minio.example:9000/{BUCKET}"
    assert url(endpoint_url="https://r2.example", path_style=False) == f"https://{BUCKET}.r2.example"


@pytest.mark.parametrize(
    "keys",
    [{"access_key_id": "only-this"}, {"secret_access_key": "only-this"}, {"session_token": "only-this"}],
)
def test_half_a_pair_of_keys_is_refused_and_not_shown(keys: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        S3Config.model_validate({"bucket": BUCKET} | keys)
    assert "only-this" not in str(caught.value)


def test_without_botocore_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    client: Any = None
    with pytest.raises(ConfigError, match=r"authwatch\[s3\]"):
        S3(S3Config(bucket=BUCKET), client)
