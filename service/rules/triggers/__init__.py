"""The conditions a rule may have, one line each."""

from __future__ import annotations

from service.rules.given import Armed, Bucket, Episode, Given, Judged, Sample
from service.rules.triggers.absence import Absence
from service.rules.triggers.base import Condition
from service.rules.triggers.count import Count
from service.rules.triggers.gauge import Gauge
from service.rules.triggers.quantile import Quantile
from service.rules.triggers.ratio import Ratio
from service.rules.triggers.state import State

__all__ = ["TRIGGERS", "Armed", "Bucket", "Condition", "Episode", "Given", "Judged", "Sample"]

TRIGGERS: dict[str, type[Condition]] = {
    Count.NAME: Count,
    Ratio.NAME: Ratio,
    Quantile.NAME: Quantile,
    Gauge.NAME: Gauge,
    State.NAME: State,
    Absence.NAME: Absence,
}
