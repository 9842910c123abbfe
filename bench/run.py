"""`make bench`: every figure with its control in the same run, a table at the end, and bench/RESULTS.md.

AUTHWATCH_BENCH=short tries it in about a minute and writes nothing. A figure that is not met is said, not hidden: the
exit code is 0 when everything ran.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from bench import intake, pausing, reading
from bench.parts import Bench, open_bench

HERE = Path(__file__).resolve().parent
NOTES, NOTES_END = "<!-- notes -->", "<!-- /notes -->"
BEGAN = time.monotonic()


@dataclass(frozen=True)
class Size:
    rounds: int
    requests: int
    latency_seconds: float
    breaks: int
    few: int
    many: int
    reads: int
    memory_events: int
    deep: int


FULL = Size(5, 25_000, 8, 240, 50_000, 5_000_000, 200, 1_000_000, 10_000)
SHORT = Size(2, 3_000, 2, 10, 2_000, 20_000, 50, 10_000, 500)


@dataclass(frozen=True)
class Figure:
    name: str
    measured: str
    control: str
    wanted: str
    met: bool


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.0f} s  {text}", flush=True)


def spread(values: list[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def measure(bench: Bench, size: Size) -> tuple[list[Figure], list[str]]:
    figures: list[Figure] = []
    more: list[str] = []
    rates = intake.throughput(bench, size.rounds, size.requests, say)
    for name, wanted in (("ours", 0.6), ("ours, worker beside it", 0.4)):
        ratios = rates.ratios(name, "no-op")
        figures.append(
            Figure(
                f"durably accepted events/s, one process, 64 connections{'; worker evaluating beside it' if 'worker' in name else ''}",
                f"{spread(ratios)} of the no-op; {rates.median(name, 'per_second'):.0f}/s",
                f"no-op {rates.median('no-op', 'per_second'):.0f}/s",
                f"{wanted} of it",
                statistics.median(ratios) >= wanted,
            )
        )
    times = rates.ratios("ours", "plain")
    figures.append(
        Figure(
            "the same, against one commit for each request",
            f"{spread(times, 1)} times",
            f"plain {rates.median('plain', 'per_second'):.0f}/s",
            "4 times",
            statistics.median(times) >= 4,
        )
    )
    more.append(
        "Processor time for a request, medians, in microseconds: "
        + "; ".join(
            f"{name}: server {rates.median(name, 'server_cpu_us'):.0f}, Postgres {rates.median(name, 'postgres_cpu_us'):.0f}, "
            f"generator {rates.median(name, 'generator_cpu_us'):.0f}"
            for name in rates.runs
        )
        + f"; worker beside it {rates.median('ours, worker beside it', 'worker_cpu_us'):.0f}."
    )

    half = rates.median("ours", "per_second") / 2
    delays = intake.latency(bench, size.rounds, half, size.latency_seconds, say)
    p99, noop, commit = (delays.median(name, "p99_ms") for name in ("ours", "no-op", "commit"))
    figures.append(
        Figure(
            f"p99 latency at half of that load ({half:.0f}/s)",
            f"{spread(delays.values('ours', 'p99_ms'))} ms; p50 {delays.median('ours', 'p50_ms'):.2f} ms",
            f"no-op's p99 {noop:.2f} ms, lone commit's p99 {commit:.2f} ms",
            f"{3 * noop + commit:.2f} ms: three times the first plus the second",
            p99 <= 3 * noop + commit,
        )
    )

    seconds, background = pausing.measure(bench, 500, size.breaks, say)
    seconds.sort()
    p50, p99 = seconds[len(seconds) // 2] * 1e3, seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1e3
    figures.append(
        Figure(
            f"receipt to workflow paused, {background['rate']} events/s steady, all parts, {len(seconds)} breaks, seen at the gate",
            f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {seconds[-1] * 1e3:.0f} ms",
            "-",
            "p50 < 60 ms, p99 < 300 ms",
            p50 < 60 and p99 < 300,
        )
    )

    small, large = reading.read_back(bench, (size.few, size.many), size.rounds, size.reads, say)
    ratio = statistics.median(large) / statistics.median(small)
    figures.append(
        Figure(
            f"events read back by account, {size.many:,} stored against {size.few:,}",
            f"p99 {statistics.median(large) * 1e3:.1f} ms: {ratio:.2f} times the small one",
            f"small: p99 {statistics.median(small) * 1e3:.1f} ms",
            "1.5 times at most",
            ratio <= 1.5,
        )
    )

    seen = reading.memory(bench, size.memory_events, size.deep, say)
    grown = seen["after_events_mib"] - seen["start_mib"]
    figures.append(
        Figure(
            f"receiver's memory after {seen['events']:,.0f} events, and with {size.deep:,} waiting",
            f"{seen['start_mib']:.0f} MiB at the start, {seen['after_events_mib']:.0f} after, {seen['deep_mib']:.0f} with the queue, "
            f"{seen['after_deep_mib']:.0f} after it ({seen['deep_202']:.0f} answered 202, {seen['deep_503']:.0f} 503)",
            "its start",
            "flat (8 MiB) and below start + 400 MiB",
            grown < 8 and seen["deep_mib"] < seen["start_mib"] + 400,
        )
    )
    return figures, more


def machine(bench: Bench) -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "?",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    with psycopg.connect(bench.database_url) as conn:
        row = conn.execute("SHOW server_version").fetchone()
    version = row[0] if row else "?"
    return (
        f"{os.cpu_count()} x {model}, {memory:.0f} GiB, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"PostgreSQL {version} with its default durability, load by a Python generator on the same processors, over loopback."
    )


def table(figures: list[Figure]) -> str:
    rows = ["| figure | measured | control in the same run | to reach | |", "|---|---|---|---|---|"]
    rows += [
        f"| {f.name} | {f.measured} | {f.control} | {f.wanted} | {'met' if f.met else '**not met**'} |" for f in figures
    ]
    return "\n".join(rows)


def results(figures: list[Figure], more: list[str], described: str, notes: str) -> str:
    missed = [f"- **Not met:** {f.name}: {f.measured}; to reach: {f.wanted}." for f in figures if not f.met]
    crash = HERE / "crash.md"
    return (
        "\n\n".join(
            part
            for part in (
                "# What was measured",
                "\n".join(missed) or "Every figure was met.",
                f"{datetime.now(UTC):%Y-%m-%d}, by `make bench`. {described} Medians of {FULL.rounds} rounds, ours and controls in turn; "
                "the machine is shared and noisy, so ratios within the run count.",
                table(figures),
                *more,
                f"{NOTES}\n{notes.strip()}\n{NOTES_END}",
                crash.read_text().strip() if crash.exists() else "",
            )
            if part
        )
        + "\n"
    )


def kept_notes(path: Path) -> str:
    """What a person wrote between the markers stays."""
    text = path.read_text() if path.exists() else ""
    return text.split(NOTES, 1)[1].split(NOTES_END, 1)[0] if NOTES in text and NOTES_END in text else ""


def main() -> None:
    short = os.environ.get("AUTHWATCH_BENCH") == "short"
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    with open_bench() as bench:
        figures, more = measure(bench, SHORT if short else FULL)
        described = machine(bench)
    print("\n" + table(figures) + "\n\n" + "\n".join(more))
    if not short:
        path = HERE / "RESULTS.md"
        path.write_text(results(figures, more, described, kept_notes(path)))
        say(f"written to {path.name}")
    print(f"{sum(f.met for f in figures)} of {len(figures)} figures met", file=sys.stderr)


if __name__ == "__main__":
    main()
