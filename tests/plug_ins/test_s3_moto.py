"""S3 against moto's server, which was not written for us: objects are read back with boto3, as an analyst would."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from service import outbound
from service.errors import DeliveryFailed
from service.sinks.base import Sent
from service.sinks.s3 import S3, S3Config, key_of
from tests.plug_ins.sink_cases.items import events, ids

BUCKET, REGION = "siem-copy", "eu-central-1"
KEYS = {"access_key_id": "AKIDOFTESTS", "secret_access_key": "nothing-that-moto-would-check"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def stored(server: str) -> Iterator[Any]:
    """boto3's bucket, empty before and after."""
    resource = boto3.resource(
        "s3",
        endpoint_url=server,
        region_name=REGION,
        aws_access_key_id=KEYS["access_key_id"],
        aws_secret_access_key=KEYS["secret_access_key"],
    )
    bucket = resource.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    yield bucket
    bucket.objects.delete()
    bucket.delete()
    resource.meta.client.close()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with outbound.open_client() as client:
        yield client


def sink_at(server: str, http: httpx.AsyncClient, **changes: Any) -> S3:
    section = {"bucket": BUCKET, "region": REGION, "endpoint_url": server, **KEYS}
    return S3(S3Config.model_validate(section | changes), http)


def held(bucket: Any) -> dict[str, list[str]]:
    found = {}
    for one in bucket.objects.all():
        body = one.get()["Body"].read()
        found[one.key] = [json.loads(line)["metadata"]["uid"] for line in gzip.decompress(body).splitlines()]
    return found


async def test_a_large_batch_is_one_object_that_boto3_reads(server: str, stored: Any, http: httpx.AsyncClient) -> None:
    assert await sink_at(server, http).send(events(2_000)) == Sent(2_000)
    assert held(stored) == {key_of(events(2_000), "authwatch", "ocsf"): ids(events(2_000))}


async def test_a_batch_sent_again_is_there_once(server: str, stored: Any, http: httpx.AsyncClient) -> None:
    sink = sink_at(server, http)
    assert await sink.send(events(5)) == Sent(5)
    (first,) = [one.last_modified for one in stored.objects.all()]
    assert await sink.send(events(5)) == Sent(5)
    assert [*held(stored).values()] == [ids(events(5))]
    assert [one.last_modified for one in stored.objects.all()] == [first]


async def test_it_is_the_server_that_refuses_the_repeat(server: str, stored: Any, http: httpx.AsyncClient) -> None:
    """What would happen to another body under the same key."""
    stored.put_object(Key=key_of(events(3), "authwatch", "ocsf"), Body=gzip.compress(b""))
    assert await sink_at(server, http).send(events(3)) == Sent(3)
    assert [*held(stored).values()] == [[]]
    assert await sink_at(server, http, conditional_writes=False).send(events(3)) == Sent(3)
    assert [*held(stored).values()] == [ids(events(3))]


async def test_a_prefix_of_a_partitioned_table_is_kept(server: str, stored: Any, http: httpx.AsyncClient) -> None:
    await sink_at(server, http, prefix="lake/source=authwatch").send(events(1))
    (key,) = held(stored)
    assert key.startswith("lake/source=authwatch/2026/11/20/")


async def test_check_finds_the_bucket_and_leaves_nothing(server: str, stored: Any, http: httpx.AsyncClient) -> None:
    assert BUCKET in await sink_at(server, http).check()
    assert held(stored) == {}


async def test_a_bucket_that_is_not_there_is_told(server: str, stored: Any, http: httpx.AsyncClient) -> None:
    sink = sink_at(server, http, bucket="no-such-bucket-of-ours")
    for trying in (sink.check(), sink.send(events(1))):
        with pytest.raises(DeliveryFailed, match="NoSuchBucket; check bucket") as caught:
            await trying
        assert caught.value.permanent
