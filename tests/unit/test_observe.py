"""What a batch is counted as is what its events would be one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.samples import Sample

from service.observe import BatchHistogram

BUCKETS = (0.1, 0.5, 1)


def samples_of(registry: CollectorRegistry) -> list[Sample]:
    return [
        sample for family in registry.collect() for sample in family.samples if not sample.name.endswith("_created")
    ]


@given(st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 1e9]), max_size=50))
def test_a_batch_is_observed_as_one_by_one(amounts: list[float]) -> None:
    one_by_one, at_once = CollectorRegistry(), CollectorRegistry()
    single = Histogram("seconds", "-", ["status"], buckets=BUCKETS, registry=one_by_one).labels("202")
    batch = BatchHistogram("seconds", "-", ["status"], buckets=BUCKETS, registry=at_once).labels("202")
    for amount in amounts:
        single.observe(amount)
    batch.observe_all(amounts)
    assert samples_of(at_once) == samples_of(one_by_one)
