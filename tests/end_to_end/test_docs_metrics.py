"""Every command of docs/metrics.md, as a reader would paste it, against running parts; its figures are the code's."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from service import exposition, families, otlp, report, reporting
from service.api import metrics_series
from service.families import Counted, by_account, by_provider, totals
from service.metrics import METRICS
from service.otlp import otlp_settings
from service.rules import RuleBook
from service.store import reports, rollups
from service.store.report_tables import COUNTS, SKETCHES
from tests.conftest import ADMIN_TOKEN, SECRET
from tests.end_to_end.running import Running, until

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "metrics.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
EXPORTS = [block for block in BLOCKS if block.startswith("export ")]
COMMANDS = [block for block in BLOCKS if block not in EXPORTS]
[SCRAPE_CONFIG] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


async def test_the_commands_do_what_the_page_says(tmp_path: Path, database_url: str) -> None:
    running = Running(
        tmp_path,
        {
            "DATABASE_URL": database_url,
            "SCALEKIT_WEBHOOK_SECRET": SECRET,
            "AUTHWATCH_ADMIN_TOKEN": ADMIN_TOKEN,
            "AUTHWATCH_RULES": str(ROOT / "alert_rules"),
        },
    )
    running.start("serve", "worker")
    try:
        await running.ready()
        calls, malformed, refreshes, read, scrape = COMMANDS
        assert json.loads(shell(running, calls)) == {"accepted": 1, "duplicates": 0}
        assert json.loads(shell(running, calls)) == {"accepted": 0, "duplicates": 1}
        assert json.loads(shell(running, malformed)) == {"items": [], "next_cursor": None}
        assert json.loads(shell(running, refreshes)) == {"accepted": 1, "duplicates": 0}

        async def counted() -> bool:
            said = [
                json.loads(line)
                for line in shell(running, read.replace('TOKEN"\n', 'TOKEN"; echo\n')).split("\n")
                if line
            ]
            return [sum(item["count"] for item in one["items"]) for one in said] == [1, 1]

        await until(counted, 20, running.logs)

        async def fired() -> bool:
            alerts = shell(running, f'curl -sS "$AUTHWATCH_URL/v1/alerts" -H "Authorization: Bearer {ADMIN_TOKEN}"')
            return "partial-execution" in {alert["rule"] for alert in json.loads(alerts)["items"]}

        await until(fired, 20, running.logs)
        seen = shell(running, scrape)
        assert 'authwatch_partial_execution_ratio{provider="jira"} 1.0\n' in seen
    finally:
        running.stop()


def shell(running: Running, words: str) -> str:
    environment = {"AUTHWATCH_URL": running.url, "TOKEN": ADMIN_TOKEN, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", "-euc", words], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_variables_of_otlp_are_taken() -> None:
    places = []
    for block in EXPORTS:
        done = subprocess.run(
            ["sh", "-euc", f"{block}\nenv"], env={}, capture_output=True, text=True, timeout=30, check=True
        )
        variables = dict(line.split("=", 1) for line in done.stdout.splitlines())
        found = otlp_settings(variables)
        assert found is not None
        places.append(found.url.get_secret_value())
        if "grafana" in places[-1]:
            assert found.headers["authorization"].get_secret_value() == "Basic aW5zdGFuY2U6dG9rZW4="
    assert places == [
        "http://datadog-agent:4318/v1/metrics",
        "https://otlp-gateway-ZONE.grafana.net/otlp/v1/metrics",
        "http://prometheus:9090/api/v1/otlp/v1/metrics",
    ]


def test_what_is_told_of_the_page_of_metrics_is_there() -> None:
    """Each name of the table is a family, and each family is in the table."""
    shown = {"jira": Counted(dict.fromkeys(COUNTS, 1.0), {name: Counter({1: 1}) for name in SKETCHES})}
    told = TEXT.split("| `authwatch_` |")[1].split("\n\n")[0]
    names = {f"authwatch_{name}" for row in told.split("\n")[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    ready = [*by_account(Counted(), {}), *by_provider(shown), *totals(shown)]
    assert names == {family.name + ("_total" if family.type == "counter" else "") for family in ready}


@pytest.mark.parametrize(
    "word",
    [*METRICS, *sorted(report.DETAILS.keys() - {"partial", "retried_against_rules"}), *sorted(report.NEVER_RETRIED)],
)
def test_every_word_is_told(word: str) -> None:
    assert word in TEXT


def test_the_figures_are_those_of_the_code() -> None:
    told = TEXT.replace("\n", " ")
    for figure in (
        f"up to {report.ITEMS_MAX:,} calls in a request of at most {report.BODY_BYTES_MAX // 1024**2} MiB",
        f"for a review for {reports.MALFORMED_KEPT.days} days",
        f"larger than {reporting.REVIEWED_BYTES_MAX // 1024} KiB",
        f"within {report.OUTWEIGHED_WITHIN.total_seconds():.0f} seconds",
        f"hours for {rollups.HOURS_KEPT.days} days",
        f"{metrics_series.POINTS_MAX:,} points at most",
        f"Up to {rollups.SERIES_MAX:,} accounts",
        f"The worst {families.ACCOUNTS_NAMED_MAX} accounts have a name",
        f"The first {families.PROVIDERS_NAMED_MAX} providers have a name",
        f"of the last {families.WINDOW.total_seconds() / 60:.0f} minutes (`authwatch_metrics_window_seconds`)",
        f"at most every {exposition.CACHE_SECONDS:.0f} seconds",
        f"{2 * (exposition.READ_SECONDS_MAX + exposition.SILENT_SECONDS_MAX):.0f} seconds at most",
        f"`OTEL_METRIC_EXPORT_INTERVAL` ({otlp.INTERVAL_DEFAULT // timedelta(milliseconds=1)} ms)",
    ):
        assert figure in told, figure


def test_the_rules_told_are_shipped() -> None:
    book = RuleBook(ROOT / "alert_rules")
    book.reload()
    told = set(re.findall(r"^\| `([a-z0-9-]+)` \| ", TEXT.split("## Their rules")[1].split("\n## ")[0], re.MULTILINE))
    assert told <= {rule.id for rule in book.rules}
    assert len(told) == 6
