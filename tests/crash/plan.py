"""What will happen, from the seed alone: how many blows fall on which part, when, and for how long."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

# The short form, as it runs with the other tests, is the same at every run; `make crash` names numbers of its own.
SHORT_SEED, SHORT_KILLS, SHORT_EVENTS = 1051, 10, 250
GAP_SECONDS = (0.3, 2.0)
TOGETHER = 0.1  # of all blows, those that fall together with the one before
LAST_POSTS_SECONDS = 2.0  # events are still sent for so long after the last blow
FREEZE_SECONDS = (2.0, 12.0)
CUT_SECONDS = (1.0, 8.0)
FULL_DISK_SECONDS = (1.5, 4.0)
DOWN_SECONDS = {"receiver": 0.3, "child": 0.0, "worker": 0.3, "redis": 2.0, "postgres": 1.0, "backend": 0.0}
TWO_PROCESSES = 0.25  # of the receiver's starts, those with `--workers 2`

# Ten kills, each with what is killed: `child` is one process of a receiver that has two, `backend` one of Postgres'.
KILLS = ("receiver",) * 2 + ("child",) + ("worker",) * 3 + ("redis", "postgres") + ("backend",) * 2
FROZEN = ("receiver", "worker", "redis", "postgres")
RESTARTED = ("receiver", "worker", "redis", "postgres")
CUTS = ("stall", "reset", "blackhole")


@dataclass(frozen=True, slots=True)
class Blow:
    """`seconds`: how long a frozen part stays frozen, a cut lasts, a disk is full, or a killed part stays down."""

    number: int
    at_seconds: float
    what: str  # kill | freeze | restart | flush | fill | stall | reset | blackhole
    target: str  # receiver | child | worker | redis | postgres | backend | disk | postgres_wire | redis_wire
    seconds: float
    processes: int  # of the receiver's next start

    @property
    def name(self) -> str:
        return f"{self.what} {self.target}"


@dataclass(frozen=True, slots=True)
class Knobs:
    """`result`: where the table goes as Markdown, if anywhere. `long`: not the short form of the ordinary tests."""

    seed: int
    kills: int
    events: int
    result: str | None
    long: bool

    @property
    def again(self) -> str:
        """How to run the same plan once more."""
        return (
            f"AUTHWATCH_CRASH_SEED={self.seed} AUTHWATCH_CRASH_KILLS={self.kills} AUTHWATCH_CRASH_EVENTS={self.events}"
        )


def read_knobs() -> Knobs:
    kills, events = os.environ.get("AUTHWATCH_CRASH_KILLS"), os.environ.get("AUTHWATCH_CRASH_EVENTS")
    seed = os.environ.get("AUTHWATCH_CRASH_SEED") or (random.randrange(10**6) if kills or events else SHORT_SEED)
    result = os.environ.get("AUTHWATCH_CRASH_RESULT") or None
    return Knobs(int(seed), int(kills or SHORT_KILLS), int(events or SHORT_EVENTS), result, bool(kills or events))


def make_plan(seed: int, kills: int) -> list[Blow]:
    """Rounds of ten kills and six other blows each, shuffled, until so many kills are planned."""
    dice = random.Random(f"weather {seed}")
    plan: list[Blow] = []
    at, killed = 0.5, 0
    while killed < kills:
        others = [
            ("freeze", dice.choice(FROZEN)),
            ("restart", dice.choice(RESTARTED)),
            ("flush", "redis"),
            ("fill", "disk"),
            (dice.choice(CUTS), "postgres_wire"),
            (dice.choice(CUTS), "redis_wire"),
        ]
        round_ = [*(("kill", target) for target in KILLS), *others]
        dice.shuffle(round_)
        for what, target in round_:
            if killed == kills:
                break
            killed += what == "kill"
            at += 0 if plan and dice.random() < TOGETHER else dice.uniform(*GAP_SECONDS)
            seconds = how_long(dice, what, target)
            processes = 2 if dice.random() < TWO_PROCESSES else 1
            plan.append(Blow(len(plan), round(at, 3), what, target, round(seconds, 3), processes))
    return with_children(plan)


def with_children(plan: Sequence[Blow]) -> list[Blow]:
    """Where one of several processes shall be killed, the start before it is one of two."""
    made, wanted = [], False
    for blow in reversed(plan):
        starts = blow.target in ("receiver", "child") and blow.what in ("kill", "restart")
        made.append(replace(blow, processes=2) if starts and wanted else blow)
        wanted = blow.target == "child" or (wanted and not starts)
    return made[::-1]


def first_processes(plan: Sequence[Blow]) -> int:
    """Of the receiver before anything falls."""
    first = next((blow for blow in plan if blow.target in ("receiver", "child") and blow.what != "freeze"), None)
    return 2 if first is not None and first.target == "child" else 1


def how_long(dice: random.Random, what: str, target: str) -> float:
    if what == "freeze":
        return dice.uniform(*FREEZE_SECONDS)
    if what in ("stall", "blackhole"):
        return dice.uniform(*CUT_SECONDS)
    if what == "fill":
        return dice.uniform(*FULL_DISK_SECONDS)
    if what in ("kill", "restart"):
        return dice.uniform(0, DOWN_SECONDS[target])
    return 0.0


def load_seconds(plan: Sequence[Blow]) -> float:
    """How long events are sent."""
    return (plan[-1].at_seconds if plan else 0.0) + LAST_POSTS_SECONDS
