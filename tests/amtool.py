"""Alertmanager's own answers: which receivers `amtool config routes test` names, which matchers its config takes.

`python -m tests.amtool` asks the amtool of this machine and writes down what it said; `test_routing_amtool.py` holds
that record against our tree on every run, and amtool itself too where it is installed (Debian: prometheus-alertmanager).
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parent / "recorded" / "amtool" / "routes.json"
RECEIVERS = ("default", "oncall", "team", "customer", "digest")
TREES = 40
SEED = 20261126
VALUES = {
    "severity": ("P1", "P2", "P3", "P4", ""),
    "team": ("payments", "identity", ""),
    "source": ("scalekit", "nango"),
}
# Alertmanager's own documentation shows a tree of this shape.
BY_HAND: list[tuple[dict[str, Any], list[dict[str, str]]]] = [
    (
        {
            "receiver": "default",
            "group_by": ["rule_id"],
            "routes": [
                {
                    "matchers": ['source=~"scalekit|nango"'],
                    "receiver": "team",
                    "routes": [{"matchers": ["severity=P1"], "receiver": "oncall"}],
                },
                {
                    "matchers": ['{severity!~"P1|P2", team!=""}'],
                    "receiver": "digest",
                    "continue": True,
                },
                {"matchers": ["team = payments "], "receiver": "customer"},
                {"matchers": ['note=~".*lost, .*"'], "receiver": "oncall"},
            ],
        },
        [
            {},
            {"source": "scalekit", "severity": "P1"},
            {"source": "scalekitten"},
            {"source": "my-scalekit"},
            {"source": "nango", "severity": "P3"},
            {"team": "payments", "severity": "P3"},
            {"team": "payments", "severity": "P1"},
            {"team": "identity", "severity": "P4"},
            {"note": "it was lost, twice"},
        ],
    ),
    (
        {
            "receiver": "default",
            "routes": [
                {
                    "receiver": "team",
                    "continue": True,
                    "routes": [
                        {"matchers": ["severity=P1"], "receiver": "oncall", "continue": True},
                        {"matchers": ["severity=~P1|P2"]},
                        {"matchers": ["severity=P1"], "receiver": "customer"},
                    ],
                },
                {"matchers": ["severity=P1"], "receiver": "digest"},
            ],
        },
        [{"severity": "P1"}, {"severity": "P2"}, {"severity": "P3"}, {}],
    ),
]
# Whether a route may be written so; every one of them as amtool's check-config sees it.
MATCHERS = [
    "a=b",
    "a = b",
    ' a = "b" ',
    "a=",
    'a=""',
    "a!=b",
    "a=~b.*",
    "a!~b|c",
    "a=~(b",
    "a=~b)",
    "a=~[b",
    "a=~*b",
    "a=~b**",
    "a=~b{2}",
    "a=~b{2,1}",
    "a=~b{,2}",
    "a=~b{1001}",
    "a=~(?i)b",
    "a=~(?i:b)c",
    "a=~(?P<x>b)",
    "a=~(?=b)",
    "a=~(?<=b)c",
    "a=~b\\1",
    "a=~\\d+\\.\\w",
    "a=~\\p",
    "a=~[\\d-z]",
    "a=~[z-a]",
    "a=~[]b]",
    "a=~[^]b]",
    "a=~^b$",
    "a=~b+?",
    "a=~b++",
    "{a=b}",
    "{a=b,c=d}",
    "{a=b,c=d,}",
    "{a=b",
    "a=b}",
    "a=b,c=~d",
    'a="b,c"',
    'a="b',
    'a=b"',
    'a=b"c',
    'a="b\\"c"',
    "a==b",
    "a~b",
    "a",
    "",
    "=b",
    "1a=b",
    "a-b=c",
    "a.b=c",
    "a:b=c",
    "_a=b",
    "ä=b",
    "a=ä",
    "a=b c",
    "a=\\n",
]
VALUES_OF_PATTERNS = [
    ("b.*", ["b", "bc", "ab", "b\nc"]),
    ("b|c", ["b", "c", "bc", ""]),
    ("", ["", "b"]),
    (".*", ["", "b", "b c"]),
    (".+", ["", "b"]),
    ("(?i)p[12]", ["P1", "p2", "p3"]),
    ("[^a-c]+", ["d", "a", "dd", ""]),
    ("b{2,3}", ["b", "bb", "bbb", "bbbb"]),
    ("b{2,}", ["b", "bb", "bbbbb"]),
    ("(a|b)*c", ["c", "abac", "abd"]),
    ("\\d+\\.\\w?", ["12.", "12.a", "12a", "1.ab"]),
    ("a?b?", ["", "a", "ab", "ba"]),
    ("^a$", ["a", "aa"]),
    ("[\\d-]+", ["1-2", "a"]),
    ("b{,2}", ["b{,2}", "b"]),
]


def find() -> str | None:
    return shutil.which("amtool")


def version(amtool: str) -> str:
    return subprocess.run([amtool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def written(route: dict[str, Any], folder: Path) -> Path:
    """JSON is YAML."""
    file = folder / "alertmanager.yml"
    file.write_text(json.dumps({"receivers": [{"name": name} for name in RECEIVERS], "route": route}))
    return file


def ask(amtool: str, file: Path, labels: dict[str, str]) -> list[str]:
    words = [f"{name}={value}" for name, value in labels.items()]
    run = [amtool, "config", "routes", "test", f"--config.file={file}", *words]
    return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip().split(",")


def takes(amtool: str, file: Path) -> bool:
    return subprocess.run([amtool, "check-config", str(file)], capture_output=True, check=False).returncode == 0


def random_route(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    route: dict[str, Any] = {"receiver": "default"} if depth == 0 else {"matchers": random_matchers(chance)}
    if depth and chance.random() < 0.8:
        route["receiver"] = chance.choice(RECEIVERS)
    if depth and chance.random() < 0.4:
        route["continue"] = True
    if depth < 3 and (depth == 0 or chance.random() < 0.6):
        route["routes"] = [random_route(chance, depth + 1) for _ in range(chance.randint(1, 3))]
    return route


def random_matchers(chance: random.Random) -> list[str]:
    found = []
    for name in chance.sample(sorted(VALUES), chance.randint(0, 2)):
        op = chance.choice(["=", "!=", "=~", "!~"])
        values = chance.sample(VALUES[name], 2) if op.endswith("~") else [chance.choice(VALUES[name])]
        found.append(f'{name}{op}"{"|".join(values)}"')
    return found


def random_labels(chance: random.Random) -> dict[str, str]:
    return {name: chance.choice(VALUES[name]) for name in VALUES if chance.random() < 0.8}


def questions() -> list[tuple[dict[str, Any], list[dict[str, str]]]]:
    chance = random.Random(SEED)
    return BY_HAND + [(random_route(chance), [{}, *(random_labels(chance) for _ in range(6))]) for _ in range(TREES)]


def record() -> None:
    amtool = find()
    assert amtool is not None, "install Debian's prometheus-alertmanager first"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        routes = []
        for route, asked in questions():
            file = written(route, folder)
            routes.append({"route": route, "cases": [[labels, ask(amtool, file, labels)] for labels in asked]})
        taken = []
        for text in MATCHERS:
            route = {"receiver": "default", "routes": [{"receiver": "team", "matchers": [text]}]}
            taken.append([text, takes(amtool, written(route, folder))])
        patterns = []
        for pattern, values in VALUES_OF_PATTERNS:
            file = written(of_pattern(pattern), folder)
            patterns.append([pattern, [[value, ask(amtool, file, {"a": value}) == ["team"]] for value in values]])
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    record = {"amtool": version(amtool), "routes": routes, "matchers": taken, "patterns": patterns}
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def of_pattern(pattern: str) -> dict[str, Any]:
    return {"receiver": "default", "routes": [{"receiver": "team", "matchers": [f"a=~{json.dumps(pattern)}"]}]}


if __name__ == "__main__":
    record()
