"""100,000 armed deadlines of which none is due: what the evaluator's look and the sweep behind it take.

In this process and against two databases in turns, one with nothing armed. A look is the whole step that a worker takes
when its timer or the second strikes: the log is asked for news, then the deadlines.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median

import psycopg
import uvloop

from bench.figure import Figure, quantile, ratio_of, shown
from bench.house import BenchFailed, House, one, say
from service.runtime import WORKER_CONNECTIONS_MAX, Runtime, open_runtime
from service.settings import load_settings
from workers.evaluate import evaluate
from workers.sweep import Sweep, sweep

ROUNDS, ROUNDS_SHORT = 5, 1
LOOKS, LOOKS_SHORT, WARM_LOOKS = 50, 5, 5
ARMED, ARMED_SHORT = 100_000, 5_000
REACH_MS = 20.0
ARM = """
INSERT INTO armed (source, environment_id, account_id, rule_id, condition_version, armed_at, event_row_id, due_at)
SELECT 'scalekit', 'env_1', 'ca_' || n, 'refresh-did-not-happen', 'bench', now(), gen_random_uuid(),
    now() + interval '1 hour' + n * interval '10 milliseconds'
FROM generate_series(1, %s) AS n
"""
Times = dict[str, list[list[float]]]  # by database, milliseconds by round


def measure(house: House) -> list[Figure]:
    count = ARMED_SHORT if house.short else ARMED
    urls = {"armed": house.database("deadlines"), "none": house.database("deadlines_none")}
    with psycopg.connect(urls["armed"], autocommit=True) as conn:
        conn.execute(ARM, (count,))
        conn.execute("VACUUM ANALYZE armed")
    looks, sweeps = uvloop.run(measured(house, urls))
    if (left := one(urls["armed"], "SELECT count(*) FROM armed")) != count:
        raise BenchFailed(f"{count} deadlines were armed and {left} are left")
    return [
        look_figure(count, looks),
        sweep_figure(sweeps),
    ]


async def measured(house: House, urls: dict[str, str]) -> tuple[Times, Times]:
    rounds, count = (ROUNDS_SHORT, LOOKS_SHORT) if house.short else (ROUNDS, LOOKS)
    looks: Times = {name: [] for name in urls}
    sweeps: Times = {name: [] for name in urls}
    async with AsyncExitStack() as stack:
        runtimes = {
            name: await stack.enter_async_context(
                open_runtime(load_settings(house.environment(url)), connections_max=WORKER_CONNECTIONS_MAX)
            )
            for name, url in urls.items()
        }
        last = {name: Sweep() for name in urls}
        for number in range(-1, rounds):
            each = count if number >= 0 else WARM_LOOKS  # the first, which is not kept, makes partitions and plans
            for name, runtime in runtimes.items():
                swept = await timed(lambda runtime=runtime, name=name: sweep(runtime, last[name]), each)  # type: ignore[misc]
                looked = await timed(lambda runtime=runtime: look(runtime), each)  # type: ignore[misc]
                if number >= 0:
                    sweeps[name].append(swept)
                    looks[name].append(looked)
            if number >= 0:
                say(
                    f"round {number + 1}/{rounds}: "
                    + "; ".join(
                        f"{name}: look {median(looks[name][-1]):.1f} ms, sweep {median(sweeps[name][-1]):.1f} ms"
                        for name in urls
                    )
                )
    return looks, sweeps


async def look(runtime: Runtime) -> None:
    done = await evaluate(runtime)
    if done.read or done.is_due:
        raise BenchFailed("there was something to judge, which is not what is measured")


async def timed(step: Callable[[], Awaitable[None]], count: int) -> list[float]:
    """Milliseconds of each."""
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        await step()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def look_figure(count: int, taken: Times) -> Figure:
    ours, control = medians(taken)
    return Figure(
        name=f"{count:,} armed deadlines, none due: the look at them",
        unit="ms",
        ours=ours,
        control_name="nothing armed",
        control=control,
        ratio=ratio_of(ours, control),
        reach=f"below {REACH_MS:.0f} ms",
        met=median(ours) < REACH_MS,
        digits=1,
        notes=[
            said(taken, "the evaluator's whole step, as its timer and each second call it: the log, then the deadlines")
        ],
    )


def sweep_figure(taken: Times) -> Figure:
    """The rest of what a second brings asks for no deadline: only what they add to it can be theirs."""
    ours, control = medians(taken)
    added = median(mine - its for mine, its in zip(ours, control, strict=True))
    return Figure(
        name="the same: the rest of each second's sweep",
        unit="ms",
        ours=ours,
        control_name="nothing armed",
        control=control,
        ratio=ratio_of(ours, control),
        reach=f"below {REACH_MS:.0f} ms more than with nothing armed",
        met=added < REACH_MS,
        digits=1,
        notes=[said(taken, "beats, rules, gauges and what we watch of ourselves")],
    )


def medians(taken: Times) -> tuple[list[float], list[float]]:
    return [median(one) for one in taken["armed"]], [median(one) for one in taken["none"]]


def said(taken: Times, what: str) -> str:
    p95 = {name: [quantile(one, 0.95) for one in rounds] for name, rounds in taken.items()}
    return (
        f"{what}; medians of {len(taken['armed'][0])} in a round; p95 {shown(p95['armed'], 1)} ms, with nothing armed"
        f" {shown(p95['none'], 1)} ms"
    )
