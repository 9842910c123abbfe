"""A mistake is named at the very word: where it is, what is wrong with it, and what to write instead."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.rules import Problem, Rule, load_text
from service.rules.advice import STATUSES
from service.rules.story import Step
from service.rules.triggers.count import Count
from tests.unit.rule_texts import GOOD, HEAD, MATCH, rule, with_change
from tests.unit.told import make_events


def problem(text: str) -> Problem:
    [found] = load_text(text.encode(), "t.yml").problems
    return found


def word(found: Problem) -> str:
    return found.source[found.offset : found.offset + found.length]


MISTAKES = [
    # What is changed, into what, the word that is pointed at, and a part of what is said.
    ("gte: 3", "gte: '3'", "'3'", "write 3, no quotes"),
    ("gte: 3", "gte: 1e3", "1e3", '"1e3" is text; write 1000'),
    ("gte: 3", "gte: 3.5", "3.5", "gte is a whole number"),
    ("gte: 3", "gte: true", "true", "gte is a number"),
    ("gte: 3", "gte: 20000", "20000", "gte is at most 10000"),
    ("gte: 3", "gte:", "gte", "it has no value"),
    ("gte: 3", "threshold: 3", "threshold", 'did you mean "gte"?'),
    ("gte: 3", "gt: 20", "gt", "more than 20 is gte: 21"),
    ("gte: 3", "above: 20", "above", "more than 20 is gte: 21"),
    ("gte: 3", "gt: {}", "gt", "more than 20 is gte: 21"),
    ("    gte: 3\n", "", "count", "write gte: 3, for instance (How many.)"),
    (HEAD, HEAD + "  shadow: true\n", "shadow", "write enabled: shadow"),
    ("within", "window", "window", 'did you mean "within"?'),
    ("15m", "1h30m", "1h30m", "write a duration such as"),
    ("15m", "15 Minutes", "15 Minutes", "write 15m"),
    ("15m", "0m", "0m", "a window has a length"),
    ("15m", "99d", "99d", "longer than 30d"),
    ("15m", "١٥m", "١٥m", "is no duration"),
    ("id: failing", "name: failing", "name", 'did you mean "id"?'),
    ("id: failing", "id: 12:30:45", "12:30:45", "an id is made of"),
    ("severity: P2", "severity: 2", "2", "write P2"),
    ("severity: P2", "severity: p2", "p2", "write P2"),
    ("  annotations: {summary", "  description: {summary", "description", 'did you mean "annotations"?'),
    (HEAD, HEAD + '  enabled: "yes"\n', '"yes"', "write true, no quotes"),
    (HEAD, HEAD + "  enabled: no\n", "no", "write false"),
    (HEAD, HEAD + "  enabled: 1\n", "1", "1 is not true, false or shadow"),
    (HEAD, HEAD + "  labels: {team: 3}\n", "3", "team is text, and 3 is a number; put it in quotes"),
    (HEAD, HEAD + "  labels: {team: true}\n", "true", "team is text"),
    (HEAD, HEAD + "  labels: {Team: x}\n", "Team", "a label's name is made of"),
    (HEAD, HEAD + "  labels: [x]\n", "[x]", "labels has keys of its own"),
    (HEAD, HEAD + "  for:\n", "for", "a duration is wanted"),
    (HEAD, HEAD + "  for_: 3m\n", "for_", 'did you mean "for"?'),
    (HEAD, HEAD + "  resolve:\n", "resolve", "resolve has no value"),
    (HEAD, HEAD + "  within: 3m\n", "within", 'it belongs under "count"'),
    (HEAD, HEAD + "  resolve: {}\n", "{}", "names nothing that ends the alert"),
    (HEAD, HEAD + "  resolve: {manual: false}\n", "{manual: false}", "take resolve out"),
    (HEAD, HEAD + "  resolve: {after: 0s}\n", "0s", "a window has a length"),
    (HEAD, HEAD + "  resolve: {gte: 3}\n", "gte", "resolve.gte does not go with count"),
    (HEAD, HEAD + "  resolve: {on: {kind: other}}\n", "on", 'did you mean "event"?'),
    (HEAD, HEAD + "  resolve: {event: {kind: othr}}\n", "othr", 'did you mean "other"?'),
    (HEAD, HEAD + "  resolve: {manual: 'yes'}\n", "'yes'", "write true"),
    (HEAD, HEAD + "  group_by: [provider, acount_id]\n", "acount_id", 'did you mean "account_id"?'),
    (HEAD, HEAD + "  group_by: account_id\n", "account_id", "group_by is a list"),
    (HEAD, HEAD + "  group_by: [source, source]\n", "source", "named twice"),
    (HEAD, HEAD + "  actions: [pause_workflows]\n", "pause_workflows", "an item of actions"),
    (
        HEAD,
        HEAD + "  actions: [{pause_workflows: {depends_on: conection_id}}]\n",
        "conection_id",
        "write connection_id",
    ),
    (HEAD, HEAD + "  gauge: {metric: delivery_lag_secs, gt: 3}\n", "delivery_lag_secs", 'mean "delivery_lag_seconds"?'),
    (HEAD, HEAD + "  <<: {a: b}\n", "<", "no merge in YAML 1.2"),
    (HEAD, HEAD + "\tenabled: true\n", "\t", "indent with spaces"),
    ("gte: 3\n", "gte: 3\n    severity: P1\n", "severity", 'it belongs beside "count"'),
    ("gte: 3\n", "gte: 3\n    gte: 4\n", "g", '"gte" is given twice'),
    ("gte: 3\n", "gte: 3\n    distinct: acount_id\n", "acount_id", 'did you mean "account_id"?'),
    (MATCH, "{kind: [other, tokn.refresh_failed]}", "tokn.refresh_failed", 'did you mean "token.refresh_failed"?'),
    (MATCH, "{kind: {ne: othr}}", "othr", 'did you mean "other"?'),
    (MATCH, "{origin: webhok}", "webhok", 'did you mean "webhook"?'),
    (MATCH, "{knd: x}", "knd", 'did you mean "kind"?'),
    (MATCH, "{details.Bad: x}", "details.Bad", "unknown field"),
    (MATCH, "{account_id: 007}", "007", "account_id is text, and 7 is a number; put it in quotes"),
    (MATCH, "[{kind: other}, {status: [EXPIRED, 3]}]", "3", "status is text"),
    (MATCH, "{status: {in: [ACTIVE]}}", "in", "write the list itself"),
    (MATCH, "{identifier: {regex: '.*'}}", "regex", 'did you mean "glob"?'),
    (MATCH, "{lag_seconds: {gtee: 3}}", "gtee", 'did you mean "gte"?'),
    (MATCH, "{lag_seconds: {gte: '3'}}", "'3'", "gte takes a number"),
    (MATCH, "{lag_seconds: '3'}", "'3'", "lag_seconds is a number"),
    (MATCH, "{provider: {gte: 3}}", "gte", "provider is text"),
    (MATCH, "{provider: {exists: 'true'}}", "'true'", "exists takes true or false"),
    (MATCH, "{provider: {}}", "{}", "provider has no operator"),
    (MATCH, "{status: }", "status", "write {exists: false}"),
    (MATCH, "{}", "{}", "an empty match would match everything"),
    (MATCH, "[]", "[]", "match has at least 1 entry"),
    (MATCH, "kind", "kind", "match has keys of its own"),
    ("{{ identifier", "{{ identifer", "identifer", 'did you mean "identifier"?'),
    ("{{ identifier }}", "{{ identifier }", "{{", "not closed"),
    ("version: 1", "version: '1'", "'1'", "write 1"),
    ("rules:", "rule:", "rule", 'did you mean "rules"?'),
    ("severity: P2", "severity: !env P2", "!", "the tag !env means nothing"),
]


@pytest.mark.parametrize(("old", "new", "at", "said"), MISTAKES)
def test_a_mistake_is_named_at_its_word(old: str, new: str, at: str, said: str) -> None:
    text = with_change(old, new)
    found = problem(text)
    assert said in str(found)
    assert word(found) == at
    assert text.splitlines()[found.line - 1][found.column - 1 :].startswith(at), "line and column are of that word"
    assert found.source in text


def test_a_placeholder_is_named_in_its_own_line() -> None:
    folded = "  annotations:\n    summary: >-\n      It fails\n      for identifer\n      that is {{ identifer }}\n"
    found = problem(GOOD[: GOOD.index("  annotations")] + folded)
    assert (found.line, found.column, word(found)) == (13, 18, "identifer")


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        (rule("absence", of="{after: {kind: other}, expect: {kind: other}}"), "{", "an absence has one deadline"),
        (rule("absence", of="{after: {kind: other}, expect: {kind: other}, deadline: soon}"), "soon", "details."),
        (rule("gauge", of="{metric: delivery_lag_seconds}"), "{", "a gauge has one threshold"),
        (rule("gauge", "  group_by: [provider]\n"), "[provider]", "write group_by: [source]"),
        *(
            (rule(condition, f"  group_by: [source, {label}]\n"), label, f"no event has a {label} to group by; known: account_id")
            for condition in ("count", "ratio", "quantile")
            for label in ("sink", "notifier", "destination", "token")
        ),
        (rule("ratio", of="{good: {became: ACTIVE}, total: {kind: other}, within: 5m, lt: 0.9, min_total: 1}"), "became", "match status and kind instead"),
        (rule("quantile", of="{match: {became: ACTIVE}, field: lag_seconds, q: 0.9, within: 5m, gt: 1, min_total: 1}"), "became", "match status and kind instead"),
        (rule("count", "  group_by: [provider]\n", of="{match: {kind: other}, within: 5m, gte: 2, distinct: became}"), "became", "different values of status"),
        (rule("gauge", of="{metric: delivery_lag_seconds, gt: .inf}"), ".inf", "gt is a number"),
        (rule("state", "  resolve: {manual: true}\n"), "resolve", "take resolve out"),
        (rule("state", "  group_by: [source]\n"), "[source]", "state groups by account_id"),
        (rule("state", of="{of: account, match: {status: 3}}"), "3", "status is text"),
        (rule("state", of="{of: account, match: {status: EXPIRED, kind: x}}"), "kind", "unknown key"),
        (rule("quantile", of="{match: {kind: other}, field: provider, q: 0.9, within: 5m, gt: 1, min_total: 1}"), "provider", "has no quantile"),
        (rule("ratio", of="{good: {status: ACTIVE}, total: {kind: other}, within: 5m, lt: '0.9', min_total: 1}"), "'0.9'", "write 0.9"),
        (rule("ratio", of="{good: {status: ACTIVE}, total: {kind: other}, within: 5m, lt: 95, min_total: 1}"), "95", "lt is at most 1, and this is 95; write 0.95"),
        (rule("quantile", of="{match: {kind: other}, field: lag_seconds, q: 99, within: 5m, gt: 1, min_total: 1}"), "99", "write 0.99"),
        (rule("gauge", "  resolve: {gt: 10}\n"), "gt", "ends it on the side where it fires (gt 30); write lte: 30, or further off"),
        (rule("gauge", "  resolve: {lte: 0.5}\n", of="{metric: tool_call_success_rate, lt: 0.9}"), "lte", "write gte: 0.9"),
        (rule("ratio", of="{good: {status: ACTIVE}, total: {kind: other}, within: 5m, lt: 95%, min_total: 1}"), "95%", "write 0.95"),
        (rule("ratio", of="{good: {status: ACTIVE}, total: {kind: other}, within: 5m, lt: 0.9}"), "ratio", "write min_total: 20, for instance (With fewer events"),
        (rule("quantile", of="{match: {kind: other}, field: duration, q: 0.9, within: 5m, gt: 1, min_total: 1}"), "duration", "known: lag_seconds, details.NAME"),
        (rule("quantile", of="{match: {kind: other}, field: lag_seconds, q: p95, within: 5m, gt: 1, min_total: 1}"), "p95", "write 0.95"),
        (rule("quantile", of="{match: {kind: other}, field: lag_seconds, q: 0.9, within: 5m, gt: 2m, min_total: 1}"), "2m", "120 for seconds or 120000 for milliseconds"),
        (rule("gauge", of="{metric: delivery_lag_seconds, gt: 1m}"), "1m", "write 60: a metric of time is in seconds"),
        (rule("count", "  group_by: [provider]\n  resolve: {event: [{kind: other}, {became: ACTIVE}]}\n"), "became", "match status and kind instead"),
        (rule("absence", "  tests: [{name: n, events: [{at: 0s, kind: other, details.scope: x}], expect: {at: 1s, state: firing}}]\n"), "details.scope", "write details: {scope: ...}"),
        (rule("count", "  group_by: [provider]\n  actions: [{pause_workflows: {depends_on: account_id}}]\n"), "account_id", "not in group_by"),
    ],
)  # fmt: skip
def test_what_only_one_condition_refuses(text: str, at: str, said: str) -> None:
    found = problem(text)
    assert said in str(found)
    assert word(found).startswith(at)


TEST = "  tests:\n  - name: one\n    events: []\n    expect: {at: 0s, state: inactive}\n"


@pytest.mark.parametrize(
    ("text", "line", "at", "said"),
    [
        (rule("count", TEST + TEST.split("tests:\n")[1]), 10, "one", "two tests are called"),
        (
            rule("count", TEST.replace("events: []", "readings: [{at: 0s, value: 1}]")),
            8,
            "readings",
            "give count events",
        ),
        (
            rule(
                "count",
                TEST.replace(
                    "[]",
                    "[{at: 0s, kind: other, repeat: 1000, every: 1s, account_id: ["
                    + ", ".join(f"a{n}" for n in range(21))
                    + "]}]",
                ),
            ),
            8,
            "events",
            "at most 20000 events, and here are 21000; repeat less",
        ),
        (rule("gauge", TEST.replace("[]", "[{at: 0s, kind: other}]")), 8, "events", "give it readings"),
        (
            rule("count", TEST.replace("inactive", "inactive, group: {acount_id: a}")),
            9,
            "acount_id",
            'did you mean "account_id"?',
        ),
        (
            rule("count", "  group_by: []\n" + TEST.replace("{at: 0s", "\n    - {at: 0s, group: {source: a}")),
            11,
            "source",
            "take group out",
        ),
    ],
)
def test_a_mistake_in_a_test_is_named_where_the_test_stands(text: str, line: int, at: str, said: str) -> None:
    found = problem(text)
    assert (found.line, word(found)) == (line, at)
    assert said in str(found)


@pytest.mark.parametrize(
    ("old", "new", "column"),
    [('{summary: "It fails for {{ identifier }}"}', "{summary: x", 16), ('"It fails for {{ identifier }}"', '"x', 26)],
)
def test_what_is_not_closed_is_named_where_it_begins_and_not_at_the_end_of_the_file(
    old: str, new: str, column: int
) -> None:
    found = problem(with_change(old, new))
    assert (found.message, found.mend) == ("not YAML: what begins here is not closed", "close it")
    assert found.line == GOOD[: GOOD.index(old)].count("\n") + 1
    assert found.column == column


def test_what_is_not_closed_before_the_next_key_is_named_in_the_mend() -> None:
    found = problem(with_change("match: {kind: token.refresh_failed}", "match: {kind: other"))
    assert (found.line, found.mend) == (7, "put a comma here, or close what begins at 6:12")


def test_a_glob_knows_two_signs_and_every_other_is_itself() -> None:
    [loaded] = load_text(with_change(MATCH, '{identifier: {glob: "[a]?-*"}}').encode(), "t.yml").rules
    told = [name for name in ("[a]x-", "[a]x-yz", "ax-yz", "[a]-y") if meets(loaded, name)]
    assert told == ["[a]x-", "[a]x-yz"]


def meets(rule: Rule, identifier: str) -> bool:
    [event] = make_events([("fail", 0.0)])
    return bool(rule.samples(Step(replace(event, identifier=identifier), None, None)))


def test_a_misspelt_key_is_not_missing_as_well() -> None:
    found = load_text(GOOD.replace("within", "witin").encode(), "t.yml").problems
    assert [one.message for one in found] == ['unknown key "witin"']


def test_nothing_of_a_file_steers_a_terminal() -> None:
    found = problem(with_change("severity: P2", 'severity: "\\e[31mP2"'))
    assert "\x1b" not in str(found)


def test_words_of_yaml_1_1_are_words() -> None:
    values = "[on, off, yes, no, 1e3, 12:30:45, 2026-01-01, 0o7, 0x1F, 1_000, y]"
    loaded = load_text(with_change(MATCH, f"{{identifier: {values}}}").encode(), "t.yml")
    assert loaded.problems == ()
    count = loaded.rules[0].condition
    assert isinstance(count, Count)
    assert count.match == [{"identifier": values.strip("[]").split(", ")}]


def test_text_with_a_tag_is_text() -> None:
    assert load_text(with_change(MATCH, "{identifier: !!str 3}").encode(), "t.yml").problems == ()


def test_an_anchor_may_be_used_again() -> None:
    text = with_change(MATCH, "[&m {kind: other}]") + "  resolve: {event: *m}\n"
    assert load_text(text.encode(), "t.yml").problems == ()


WARNINGS = [
    (rule("count", "  group_by: [connection_id]\n"), "connection_id", "it averages over users"),
    (rule("ratio", "  group_by: [provider, connection_id]\n"), "connection_id", "it averages over users"),
    (rule("count", "  allowed_lateness: 20m\n"), "20m", "tries again for up to 22 minutes"),
    (rule("count", "  actions: [{pause_workflows: {}}]\n"), "annotations", "add what_to_do"),
    (rule("count", of="{match: {status: expired}, within: 5m, gte: 2}"), "expired", 'did you mean "EXPIRED"?'),
    (rule("state", of="{of: account, match: [{status: [ACTIVE, DISCONECTED]}]}"), "DISCONECTED", "did you mean"),
    (rule("count", "  resolve: {event: [{kind: other}, {became: ACTVE}]}\n"), "ACTVE", 'did you mean "ACTIVE"?'),
    (
        rule("count", of="{match: {kind: other, details.scope: x}, within: 5m, gte: 2}"),
        "details.scope",
        "known: details.",
    ),
    (
        rule("count", of="{match: {details.token_expire_at: x}, within: 5m, gte: 2}"),
        "details.token_expire_at",
        "token_expires_at",
    ),
    (rule("count", "  group_by: [details.team]\n"), "details.team", "no provider is known to send details.team"),
    (
        rule("count", of='{match: {details.http_status: "500"}, within: 5m, gte: 2}'),
        '"500"',
        "write a number, no quotes",
    ),
    (rule("count", of="{match: {details.http_status: [500, true]}, within: 5m, gte: 2}"), "true", "holds a number"),
    (rule("count", of='{match: {details.partial: "true"}, within: 5m, gte: 2}'), '"true"', "write true or false"),
    (rule("count", of="{match: {details.tool: {ne: [a, 3]}}, within: 5m, gte: 2}"), "3", "put it in quotes"),
    (rule("count", "  for: 5m\n"), "5m", "a single burst never opens it"),
    (
        rule(
            "count", "  actions: [{pause_workflows: {}}]\n", of="{match: {kind: auth.failed}, within: 5m, gte: 2}"
        ).replace("summary: s", "summary: s, what_to_do: w"),
        "actions",
        "this silence ends the alert, and the pause",
    ),
    (
        rule("ratio", of="{good: {kind: other}, total: {kind: auth.failed}, within: 5m, lt: 0.9, min_total: 10}"),
        "total",
        "add to total what is good: kind: [auth.failed, other]",
    ),
    (rule("count", of="{match: {details.last_used_at: {gt: 3}}, within: 5m, gte: 2}"), "gt", "holds a time"),
    (
        rule("count", of="{match: {kind: other}, within: 5m, gte: 2, distinct: details.x}"),
        "details.x",
        "no provider is known",
    ),
    (rule("count", "  resolve: {event: {details.x: y}}\n"), "details.x", "no provider is known"),
    (
        rule(
            "quantile", of="{match: {kind: other}, field: details.durration, q: 0.9, within: 5m, gt: 3, min_total: 2}"
        ),
        "details.durration",
        "no provider is known",
    ),
    (
        rule(
            "quantile",
            of="{match: {kind: other}, field: details.last_used_at, q: 0.9, within: 5m, gt: 3, min_total: 2}",
        ),
        "details.last_used_at",
        "holds a time, and only numbers have a quantile",
    ),
    (
        rule("absence", of="{after: {kind: other}, expect: {kind: audit}, within: 5m}"),
        "audit",
        "no rule is judged by that",
    ),
    (
        rule("absence", of="{after: {kind: other}, expect: {became: ACTIVE}, within: 5m}"),
        "became",
        "{kind: account.updated, status: ACTIVE}",
    ),
    (
        rule("absence", of="{after: {kind: other}, expect: {kind: other}, deadline: details.ends_at}"),
        "details.ends_at",
        "no provider is known",
    ),
    (
        rule("count", "  group_by: [provider]\n  resolve: {event: {kind: other}}\n"),
        "event",
        "ends the alert of all of them",
    ),
    (
        rule("count", "  group_by: [provider]\n").replace("summary: s", 'summary: "{{ provider }} {{ identifier }}"'),
        "identifier",
        "one alert for each provider; write one of group, provider, value",
    ),
    (rule("count", "  group_by: []\n").replace("summary: s", 'summary: "{{ status }}"'), "status", "one alert for all"),
    (
        rule("gauge").replace("summary: s", 'summary: "{{ source }} {{ identifier }}"'),
        "identifier",
        "one alert for each source",
    ),
]


@pytest.mark.parametrize(("text", "at", "said"), WARNINGS)
def test_what_is_seldom_meant_is_a_warning(text: str, at: str, said: str) -> None:
    loaded = load_text(text.encode(), "t.yml")
    assert (len(loaded.rules), loaded.problems) == (1, ())
    [warning] = loaded.warnings
    assert warning.warning
    assert said in str(warning)
    assert word(warning) == at


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        rule("count", "  group_by: [connection_id, account_id]\n"),
        rule("count", "  group_by: [connection_id]\n", of="{match: {kind: other}, within: 5m, gte: 2, distinct: account_id}"),
        rule("count", "  allowed_lateness: 25m\n"),
        rule("count", of="{match: {details.connection_name: x}, within: 5m, gte: 2}"),
        rule("count", of="{match: {details.retries: {gt: 1, ne: 3}, details.partial: true}, within: 5m, gte: 2}"),
        rule("count", of='{match: {details.tool: {glob: "a*"}, details.workflow_id: "3"}, within: 5m, gte: 2}'),
        rule("absence", of="{after: {kind: other}, expect: [{kind: other}, {became: ACTIVE}], within: 5m}"),
        rule("count", "  group_by: [provider]\n  resolve: {event: {kind: other}}\n", of="{match: {kind: other}, within: 5m, gte: 2, distinct: account_id}"),
        rule("count", "  group_by: [connection_id, account_id]\n").replace("summary: s", 'summary: "{{ identifier }}"'),
        *(rule("count", of=f"{{match: {{status: {status}}}, within: 5m, gte: 2}}") for status in (*STATUSES, "SUSPENDED")),
    ],
)  # fmt: skip
def test_what_is_meant_draws_no_warning(text: str) -> None:
    loaded = load_text(text.encode(), "t.yml")
    assert (loaded.problems, loaded.warnings) == ((), ())
