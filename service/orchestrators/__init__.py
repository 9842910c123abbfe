"""The orchestrators we speak to, by the `kind` a config section names. A new one is a file, one line, and its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel

from service.orchestrators.airflow import AirflowConfig, open_airflow
from service.orchestrators.base import Orchestrator
from service.orchestrators.n8n import N8nConfig, open_n8n
from service.orchestrators.prefect import PrefectConfig, open_prefect
from service.orchestrators.temporal import open_temporal
from service.orchestrators.temporal_client import TemporalConfig
from service.orchestrators.webhook import WebhookConfig, open_webhook


@dataclass(frozen=True, slots=True)
class OrchestratorKind:
    """`Config` validates a section (its `kind` and `name` included), `open(config, http)` makes the orchestrator."""

    Config: type[BaseModel]
    open: Callable[[Any, httpx.AsyncClient], Orchestrator]


ORCHESTRATORS: dict[str, OrchestratorKind] = {
    "airflow": OrchestratorKind(AirflowConfig, open_airflow),
    "n8n": OrchestratorKind(N8nConfig, open_n8n),
    "prefect": OrchestratorKind(PrefectConfig, open_prefect),
    "temporal": OrchestratorKind(TemporalConfig, open_temporal),
    "webhook": OrchestratorKind(WebhookConfig, open_webhook),
}
