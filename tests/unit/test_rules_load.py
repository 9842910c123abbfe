"""A mistake in a rule file is named with its place and its mend, and harms nothing but its own file's next version."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import dedent

import pytest

from service.rules import RuleBook, load_file, load_text
from service.rules.load import FILE_BYTES_MAX
from service.rules.triggers.count import Count

GOOD = """\
version: 1
rules:
- id: failing
  severity: P2
  count:
    match: {kind: token.refresh_failed}
    within: 15m
    gte: 3
  annotations: {summary: "It fails for {{ identifier }}"}
"""
SHIPPED = Path(__file__).resolve().parents[2] / "alert_rules"


def problems(text: str | bytes) -> list[str]:
    raw = text if isinstance(text, bytes) else dedent(text).encode()
    loaded = load_text(raw, "team.yml")
    assert not (loaded.problems and loaded.rules), "a file with a mistake gives no rules"
    return [str(problem) for problem in loaded.problems]


def test_a_good_file_has_no_problems() -> None:
    loaded = load_text(GOOD.encode(), "team.yml")
    assert (loaded.problems, [rule.id for rule in loaded.rules]) == ((), ["failing"])
    assert (loaded.places, loaded.text) == (((3, 3),), GOOD)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    within: 15m\n", "    witin: 15m\n", 'team.yml:7:5: unknown key "witin"; did you mean "within"?'),
        ("    within: 15m\n", "", 'team.yml:5:3: "within" is missing here'),
        ("severity: P2", "severty: P2", 'team.yml:4:3: unknown key "severty"; did you mean "severity"?'),
        ("severity: P2", "severity: P9", 'team.yml:4:13: severity: "P9" is not one of P1, P2, P3, P4'),
        ("15m", "15 minutes", 'team.yml:7:13: "15 minutes" is no duration; write 15m'),
        ("15m", "900", "team.yml:7:13: 900 is a number without a unit; write 900s"),
        ("gte: 3", "gte: 0", "team.yml:8:10: gte is at least 1, and this is 0"),
        ("token.refresh_failed", "token.refresh_faild", 'unknown kind "token.refresh_faild"; did you mean'),
        ("{kind: token.refresh_failed}", "{knd: x}", 'unknown field "knd"; did you mean "kind"?'),
        ("{kind: token.refresh_failed}", "{lag_seconds: {gtee: 3}}", 'unknown operator "gtee"; did you mean "gte"?'),
        ("{kind: token.refresh_failed}", "{}", "an empty match would match everything"),
        ("identifier", "identifer", 'unknown placeholder "identifer"; did you mean "identifier"?'),
        ("version: 1", "version: 2", "team.yml:1:10: version is at most 1, and this is 2"),
        ("id: failing", "id: Not An Id", "team.yml:3:7: an id is made of a-z, 0-9 and -"),
    ],
)
def test_a_mistake_names_file_line_column_and_mend(old: str, new: str, said: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(said in problem for problem in found), found
    assert all(problem.startswith("team.yml:") for problem in found)


def test_two_conditions_and_none_are_both_mistakes() -> None:
    both = GOOD.replace(
        "  annotations",
        "  state: {of: account, match: {status: EXPIRED, active_workflows: {gte: 1}}}\n  annotations",
    )
    [said] = problems(both)
    assert "exactly one condition" in said
    assert "has 2" in said
    [said] = problems('version: 1\nrules:\n- id: a\n  severity: P1\n  annotations: {summary: "x"}\n')
    assert said.startswith("team.yml:3:3: ")
    assert "has 0" in said


def test_every_mistake_of_a_file_is_named_at_once() -> None:
    found = problems(GOOD.replace("severity: P2", "severity: P9").replace("15m", "soon"))
    assert [problem.split(": ")[0] for problem in sorted(found)] == ["team.yml:4:13", "team.yml:7:13"]


def test_an_id_used_twice_in_one_file_names_its_second_place() -> None:
    [said] = problems(GOOD + GOOD.split("rules:\n")[1])
    assert said == 'team.yml:10:7: rule id "failing" is used twice in this file; give it another'


def test_a_key_given_twice_is_a_mistake() -> None:
    [said] = problems(GOOD.replace("    gte: 3\n", "    gte: 3\n    gte: 4\n"))
    assert said.startswith("team.yml:9:5: ")


@pytest.mark.parametrize(
    "text",
    [
        b"version: 1\nrules: [\xff]\n",
        b"",
        b"[]",
        b"just words",
        b"version: 1\nrules:\n\t- id: a\n",
        b"version: 1\nrules: {",
        b"[" * 5000,
        b"version: 1\nrules: []\n---\nversion: 1\n",
        b"\x00",
        b"version: 1\nrules: [*nothing]\n",
        b"? {a: b}\n: c\n",
    ],
)
def test_what_is_no_rule_file_is_a_problem_and_never_an_exception(text: bytes) -> None:
    assert problems(text)


def test_not_utf_8_says_so() -> None:
    assert problems("version: 1 # é".encode("latin-1")) == ["team.yml:1:14: not UTF-8; save the file as UTF-8"]


def test_aliases_of_aliases_are_not_unrolled() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    [said] = problems("\n".join(["version: 1", "rules: []", *lines]))
    assert "repeats too much" in said


def test_a_recursive_alias_ends() -> None:
    assert problems("version: 1\nrules: &r [*r]\n")


def test_on_and_no_are_words() -> None:
    match = "{identifier: no, provider: [on, off, yes]}"
    loaded = load_text(GOOD.replace("{kind: token.refresh_failed}", match).encode(), "team.yml")
    assert loaded.problems == ()
    count = loaded.rules[0].condition
    assert isinstance(count, Count)
    assert count.match == [{"identifier": "no", "provider": ["on", "off", "yes"]}]
    assert 'unknown key "on"' in problems(GOOD.replace("  annotations", "  on: x\n  annotations"))[0]


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "big.yml").write_bytes(GOOD.encode() + b"#" * FILE_BYTES_MAX)
    [problem] = load_file(tmp_path / "big.yml").problems
    assert str(problem) == f"big.yml:1:1: larger than {FILE_BYTES_MAX} bytes; split it"


def write(path: Path, text: str) -> None:
    path.write_text(text)
    stamp = path.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(stamp, stamp))


def ids(book: RuleBook) -> list[str]:
    return [rule.id for rule in book.rules]


def test_a_mistake_keeps_the_last_good_rules_of_its_file_and_harms_no_other(tmp_path: Path) -> None:
    write(tmp_path / "a.yml", GOOD.replace("failing", "one"))
    write(tmp_path / "b.yml", GOOD.replace("failing", "two"))
    book = RuleBook(tmp_path)
    assert book.reload() == ()
    before = book.version
    write(tmp_path / "a.yml", GOOD.replace("failing", "one").replace("15m", "soon"))
    write(tmp_path / "b.yml", GOOD.replace("failing", "three"))
    [problem] = book.reload()
    assert str(problem).startswith("a.yml:7:13: ")
    assert ids(book) == ["one", "three"]
    assert book.reload() == (problem,), "it stands until it is mended"
    assert book.version != before
    write(tmp_path / "a.yml", GOOD.replace("failing", "mended-rule"))
    assert book.reload() == ()
    assert ids(book) == ["mended-rule", "three"]


def test_a_deleted_file_takes_its_rules_along(tmp_path: Path) -> None:
    write(tmp_path / "a.yml", GOOD.replace("failing", "one"))
    write(tmp_path / "b.yml", GOOD.replace("failing", "two"))
    book = RuleBook(tmp_path)
    book.reload()
    (tmp_path / "a.yml").unlink()
    assert book.reload() == ()
    assert ids(book) == ["two"]


def test_a_folder_that_cannot_be_read_keeps_everything_and_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    folder.mkdir()
    write(folder / "a.yml", GOOD)
    book = RuleBook(folder)
    book.reload()
    folder.rename(tmp_path / "gone")
    [problem] = book.reload()
    assert "AUTHWATCH_RULES" in str(problem)
    assert ids(book) == ["failing"]
    (tmp_path / "gone").rename(folder)
    assert book.reload() == ()


def test_an_id_of_another_file_is_that_files_mistake_until_it_is_mended(tmp_path: Path) -> None:
    write(tmp_path / "a.yml", GOOD)
    write(tmp_path / "b.yml", GOOD)
    book = RuleBook(tmp_path)
    [problem] = book.reload()
    assert str(problem).startswith("b.yml:3:7: ")
    assert "already used in a.yml" in str(problem)
    write(tmp_path / "c.yml", GOOD.replace("failing", "other"))
    assert book.reload() == (problem,), "said once, however often other files change"
    (tmp_path / "a.yml").unlink()
    assert book.reload() == ()
    assert ids(book) == ["failing", "other"]


def test_a_disabled_rule_is_not_in_force(tmp_path: Path) -> None:
    write(tmp_path / "a.yml", GOOD.replace("  severity", "  enabled: false\n  severity"))
    book = RuleBook(tmp_path)
    assert book.reload() == ()
    assert ids(book) == []
    assert book.ruleset.known_ids == {"failing"}, "and yet somebody wrote it"


def test_the_shipped_rules_load_and_each_says_what_why_and_what_to_do() -> None:
    book = RuleBook(SHIPPED)
    assert book.reload() == ()
    assert set(ids(book)) >= {"account-disconnected-active-workflow", "token-refresh-failing"}
    for rule in book.rules:
        assert rule.annotations.summary
        assert rule.annotations.reason
        assert rule.annotations.what_to_do
        assert rule.stable_for.total_seconds() == 30
        if rule.id in ("account-disconnected-active-workflow", "token-refresh-failing"):
            assert rule.severity == "P2"
            assert rule.pauses


def test_the_shipped_gauges_are_about_ourselves_our_sources_and_the_metrics() -> None:
    book = RuleBook(SHIPPED)
    book.reload()
    said = {rule.id: (rule.severity, tuple(rule.group_by), rule.pauses) for rule in book.ruleset.gauges}
    assert said == {
        "actions-stalled": ("P2", ("destination",), False),
        "delivery-lag": ("P2", ("source",), False),
        "delivery-lag-of-other-events": ("P3", ("source",), False),
        "evaluator-stalled": ("P1", (), False),
        "notifier-stalled": ("P2", ("notifier",), False),
        "refresh-latency": ("P3", ("provider",), False),
        "refresh-success-rate": ("P2", ("provider",), False),
        "siem-poller-silent": ("P3", ("token",), False),
        "sink-far-behind": ("P3", ("sink",), False),
        "sink-poison": ("P3", ("sink",), False),
        "sink-stalled": ("P3", ("sink",), False),
        "tool-call-success-rate": ("P2", ("account_id",), False),
        "source-silent": ("P2", ("source",), False),
    }


@pytest.mark.parametrize(
    ("count", "said"),
    [
        ("{match: {provider: [[x]]}, within: 15m, gte: 3}", "a list holds plain values"),
        ("{match: {provider: [{a: b}]}, within: 15m, gte: 3}", "a list holds plain values"),
        ("{match: {kind: other}, within: 999999d, gte: 3}", "longer than 30d"),
    ],
)
def test_what_would_stop_the_evaluator_is_a_problem_of_its_file(count: str, said: str) -> None:
    text = f'version: 1\nrules:\n- {{id: x, severity: P3, count: {count}, annotations: {{summary: "s"}}}}\n'
    [problem] = load_text(text.encode(), "x.yml").problems
    assert said in problem.message


def test_the_text_in_force_is_the_last_good_one_and_each_rule_knows_its_file(tmp_path: Path) -> None:
    write(tmp_path / "a.yml", GOOD)
    write(tmp_path / "b.yml", GOOD.replace("failing", "two"))
    write(tmp_path / ".#a.yml", "an editor's")
    book = RuleBook(tmp_path)
    assert book.reload() == ()
    assert book.files() == {"a.yml": GOOD, "b.yml": GOOD.replace("failing", "two")}
    write(tmp_path / "b.yml", "version: 1\nrules: [")
    assert book.reload()
    assert book.files()["b.yml"] == GOOD.replace("failing", "two")
    assert (book.file_of("failing"), book.file_of("two"), book.file_of("nobody")) == ("a.yml", "b.yml", None)


def test_warnings_stand_beside_the_rules_and_hold_nothing_up(tmp_path: Path) -> None:
    write(tmp_path / "a.yml", GOOD.replace("  severity", "  allowed_lateness: 5m\n  severity"))
    book = RuleBook(tmp_path)
    assert book.reload() == ()
    [warning] = book.warnings
    assert (str(warning)[:11], warning.warning) == ("a.yml:4:21:", True)
    assert ids(book) == ["failing"]


def test_a_file_beyond_the_limit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.rules.load.FILES_MAX", 1)
    write(tmp_path / "a.yml", GOOD)
    write(tmp_path / "b.yml", GOOD.replace("failing", "two"))
    book = RuleBook(tmp_path)
    [problem] = book.reload()
    assert str(problem).startswith("b.yml:1:1: more than 1 files")
    assert ids(book) == ["failing"]


def test_a_rule_needs_no_words_and_is_advised_to_have_some() -> None:
    loaded = load_text(GOOD.split("  annotations")[0].encode(), "team.yml")
    assert loaded.problems == ()
    assert loaded.rules[0].summary == "Failing"
    assert any("people will read its id" in warning.message for warning in loaded.warnings)


@pytest.mark.parametrize(("escape", "named"), [(r"\0", "U+0000"), (r"\ud800", "U+D800"), (r"\e[31m", "U+001B")])
@pytest.mark.parametrize("where", ['summary: "{}"', 'summary: s, "{}": x', 'summary: s, reason: "{}"'])
def test_text_that_the_database_cannot_keep_is_a_problem_of_its_file(escape: str, named: str, where: str) -> None:
    """The alert of such a rule could not be written, and no other rule of its batch would be heard either."""
    text = GOOD[: GOOD.index("  annotations")] + f"  annotations: {{{where.format(escape)}}}\n"
    loaded = load_text(text.encode(), "x.yml")
    assert loaded.rules == ()
    [problem] = loaded.problems
    assert f"holds the character {named}" in problem.message
    assert problem.line == text.count("\n")
