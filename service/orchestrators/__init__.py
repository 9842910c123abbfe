"""The orchestrators we speak to, by the `kind` a config section names. A new one is a file, one line, and its cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel

from service.orchestrators.airflow import AirflowConfig, open_airflow
from service.orchestrators.base import Orchestrator
from service.orchestrators.prefect import PrefectConfig, open_prefect
from service.orchestrators.webhook import WebhookConfig, open_webhook


@dataclass(frozen=True, slots=True)
class OrchestratorKind:
    """`Config` validates a section (its `kind` and `name` included), `open(config, http)` makes the orchestrator."""

    Config: type[BaseModel]
    open: Callable[[Any, httpx.AsyncClient], Orchestrator]


ORCHESTRATORS: dict[str, OrchestratorKind] = {
    "airflow": OrchestratorKind(AirflowConfig, open_airflow),
    "prefect": OrchestratorKind(PrefectConfig, open_prefect),
    "webhook": OrchestratorKind(WebhookConfig, open_webhook),
}
