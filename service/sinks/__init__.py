"""The SIEM destinations we have, by the `kind` a config section names. A new one is a file, one line below, and its cases."""

from __future__ import annotations

from service.sinks.base import SinkKind
from service.sinks.elasticsearch import Elasticsearch, ElasticsearchConfig
from service.sinks.otlp_logs import OtlpLogs, OtlpLogsConfig
from service.sinks.splunk_hec import SplunkHec, SplunkHecConfig
from service.sinks.webhook import WebhookSink, WebhookSinkConfig

SINKS: dict[str, SinkKind] = {
    "elasticsearch": SinkKind(ElasticsearchConfig, Elasticsearch),
    "otlp_logs": SinkKind(OtlpLogsConfig, OtlpLogs),
    "splunk_hec": SinkKind(SplunkHecConfig, SplunkHec),
    "webhook": SinkKind(WebhookSinkConfig, WebhookSink),
}
