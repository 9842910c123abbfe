"""What an import proposes: stable ids, nobody's workflow taken, nothing that is registered touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import ConfigError
from service.orchestrators.base import Listed
from service.orchestrators.proposals import Plan, Wanted, plan, workflow_id_of
from service.settings import ConfigFile, Environment, load_settings, read_config


def made(
    *listed: Listed,
    there: dict[str, str] | None = None,
    taken: frozenset[str] = frozenset(),
    tag: str | None = None,
    name: str | None = None,
    cut: bool = False,
) -> Plan:
    return plan(Wanted(orchestrator="prod", tag=tag, name=name), listed, there or {}, taken, cut=cut)


def ids(plan: Plan) -> dict[str, str]:
    return {one.ref: one.workflow_id for one in plan.new}


@pytest.mark.parametrize(
    ("name", "workflow_id"),
    [
        ("nightly", "nightly"),
        ("Sync Tickets / Nightly", "sync-tickets-nightly"),
        ("etl.daily_v2", "etl.daily_v2"),
        ("--x--", "x"),
        ("Wörk Flow", "wörk-flow"),
        ("x" * 200, "x" * 80),
    ],
)
def test_an_id_comes_from_the_name(name: str, workflow_id: str) -> None:
    assert workflow_id_of(Listed(ref="r1", name=name)) == workflow_id


def test_a_name_without_a_letter_goes_by_its_ref() -> None:
    one, other = (workflow_id_of(Listed(ref=ref, name="🔥")) for ref in ("r1", "r2"))
    assert one.startswith("workflow-")
    assert one != other


def test_only_what_has_the_tag_and_the_name_is_proposed() -> None:
    listed = (
        Listed(ref="1", name="sync-mail", tags=("gmail", "eu")),
        Listed(ref="2", name="sync-mail-old"),
        Listed(ref="3", name="report", tags=("gmail",)),
    )
    assert set(ids(made(*listed))) == {"1", "2", "3"}
    assert set(ids(made(*listed, tag="gmail"))) == {"1", "3"}
    assert set(ids(made(*listed, name="sync-*"))) == {"1", "2"}
    assert set(ids(made(*listed, tag="gmail", name="sync-*"))) == {"1"}


def test_what_is_registered_is_left_under_the_id_that_a_person_gave_it() -> None:
    found = made(Listed(ref="1", name="nightly"), there={"1": "my-own-word"})
    assert found.new == ()
    assert [(one.workflow_id, one.name) for one in found.known] == [("my-own-word", "nightly")]


def test_what_is_registered_by_another_ref_of_its_own_is_neither_new_nor_gone() -> None:
    """A deployment of Prefect goes by `flow/deployment` as well as by its id."""
    found = made(Listed(ref="1", name="etl/nightly", other_refs=("etl/nightly",)), there={"etl/nightly": "etl"})
    assert (found.new, found.gone) == ((), ())
    assert [(one.workflow_id, one.ref) for one in found.known] == [("etl", "etl/nightly")]


def test_an_id_that_is_taken_is_nobody_elses() -> None:
    found = made(Listed(ref="1", name="nightly"), taken=frozenset({"nightly"}))
    [one] = found.new
    assert one.workflow_id.startswith("nightly-")
    assert one.instead_of == "nightly"


def test_two_of_one_name_are_told_apart_the_same_way_whatever_their_order() -> None:
    listed = (Listed(ref="1", name="Nightly"), Listed(ref="2", name="nightly"))
    found = ids(made(*listed))
    assert found == ids(made(*reversed(listed)))
    assert len(set(found.values())) == 2
    assert all(one.startswith("nightly-") for one in found.values())


def test_done_again_there_is_nothing_to_do() -> None:
    listed = (Listed(ref="1", name="a"), Listed(ref="2", name="A"), Listed(ref="3", name="b"))
    first = ids(made(*listed))
    assert made(*listed, there=first, taken=frozenset(first.values())).new == ()


def test_what_is_not_listed_any_more_is_said_unless_the_list_was_cut() -> None:
    listed = Listed(ref="1", name="a")
    assert made(listed, there={"1": "a", "2": "b"}).gone == (("b", "2"),)
    assert made(listed, there={"1": "a", "2": "b"}, name="other").gone == (("b", "2"),)
    assert made(listed, there={"2": "b"}, cut=True).gone == ()


# The config file

SECTION = "{kind: webhook, url: 'https://ops.example.com/hook', secret: 'whsec_x'}"


def read(tmp_path: Path, imports: str) -> ConfigFile:
    path = tmp_path / "config.yml"
    path.write_text(f"orchestrators:\n  prod: {SECTION}\nimports:\n{imports}\n")
    return read_config(path, Environment({}))


def test_the_config_file_names_what_is_kept_in_step(tmp_path: Path) -> None:
    [one] = read(tmp_path, "- {orchestrator: prod, tag: gmail, connection_ids: [conn_1], every: 10m}").imports
    assert (one.orchestrator, one.tag, one.connection_ids, one.every.total_seconds()) == (
        "prod",
        "gmail",
        ("conn_1",),
        600,
    )


@pytest.mark.parametrize(
    ("imports", "said"),
    [
        ("- {orchestrator: prod}", "name account_ids or connection_ids"),
        ("- {orchestrator: prod, account_ids: [ca_1], every: 5s}", "write a duration from 1m to 1d"),
        ("- {orchestrator: prod, account_ids: [ca_1], tagg: x}", 'did you mean "tag"'),
        ("- {orchestrator: prod, account_ids: [7]}", "write a text of 1 to 200 characters"),
    ],
)
def test_a_mistake_is_said_with_its_mend(tmp_path: Path, imports: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, imports)


def test_an_import_of_an_orchestrator_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    read(tmp_path, "- {orchestrator: prdo, account_ids: [ca_1]}")
    variables = {"DATABASE_URL": "postgresql://h/d", "AUTHWATCH_CONFIG": str(tmp_path / "config.yml")}
    with pytest.raises(ConfigError, match=r"imports\.0\.orchestrator names none of `orchestrators`; known: prod"):
        load_settings(variables)
