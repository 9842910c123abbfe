"""What `authwatch orchestrators import` proposes to register, from what an orchestrator lists and what is known. Pure.

What is registered already is never touched: a workflow is known by its `ref` there, under whatever id a person gave it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from service.orchestrators.base import Listed

ID_CHARS_MAX = 80
SUFFIX_CHARS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`tag` is one of its tags, `name` a pattern (`*`, `?`, `[a-z]`) of its whole name; None: whatever they are."""

    orchestrator: str
    tag: str | None = None
    name: str | None = None
    account_ids: tuple[str, ...] = ()
    connection_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """`instead_of`: the id that its name gives, where that one is another workflow's."""

    workflow_id: str
    name: str
    ref: str
    instead_of: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """Registered already, and left as it is."""

    workflow_id: str
    name: str
    ref: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`gone`: registered at that orchestrator as (workflow id, ref), and not listed there any more; empty where the list was
    cut, since nothing can be said then. `looked_at`: how many it listed."""

    wanted: Wanted
    new: tuple[Proposal, ...]
    known: tuple[Known, ...]
    gone: tuple[tuple[str, str], ...]
    looked_at: int
    cut: bool


def plan(
    wanted: Wanted, listed: Sequence[Listed], there: Mapping[str, str], taken: frozenset[str], *, cut: bool = False
) -> Plan:
    """`there`: workflow id by ref, of what is registered at that orchestrator. `taken`: of the ids that the names give, those
    of workflows registered anywhere. `cut`: it may have more than it listed."""
    chosen = {one.ref: one for one in listed if matches(wanted, one)}
    known = {ref: at for ref, one in chosen.items() if (at := ref_there(one, there)) is not None}
    new = sorted((one for ref, one in chosen.items() if ref not in known), key=lambda one: (one.name, one.ref))
    counts = Counter(workflow_id_of(one) for one in new)
    proposals = []
    for one in new:
        plain = workflow_id_of(one)
        free = plain not in taken and counts[plain] == 1
        proposals.append(
            Proposal(plain, one.name, one.ref) if free else Proposal(apart(plain, one.ref), one.name, one.ref, plain)
        )
    refs = {ref for one in listed for ref in (one.ref, *one.other_refs)}
    return Plan(
        wanted=wanted,
        new=tuple(proposals),
        known=tuple(Known(there[at], chosen[ref].name, at) for ref, at in sorted(known.items())),
        gone=() if cut else tuple(sorted((id_, ref) for ref, id_ in there.items() if ref not in refs)),
        looked_at=len(listed),
        cut=cut,
    )


def ref_there(one: Listed, there: Mapping[str, str]) -> str | None:
    """The ref under which it is registered: twice, the two would put back each other's pauses."""
    return next((ref for ref in (one.ref, *one.other_refs) if ref in there), None)


def matches(wanted: Wanted, one: Listed) -> bool:
    return (wanted.tag is None or wanted.tag in one.tags) and (
        wanted.name is None or fnmatchcase(one.name, wanted.name)
    )


def workflow_id_of(one: Listed) -> str:
    """The same for the same name, whatever else is there: small letters, digits, dots, - and _."""
    kept = "".join(c if c.isalnum() or c in "._" else "-" for c in one.name.casefold())
    plain = "-".join(part for part in kept[:ID_CHARS_MAX].split("-") if part)
    return plain or f"workflow-{digest(one.ref)}"


def apart(plain: str, ref: str) -> str:
    """Of several that would be called the same, each by its ref: the same at every run."""
    return f"{plain}-{digest(ref)}"


def digest(ref: str) -> str:
    return hashlib.sha256(ref.encode()).hexdigest()[:SUFFIX_CHARS]


def body(wanted: Wanted, proposal: Proposal) -> dict[str, Any]:
    """Of PUT /v1/workflows/{workflow_id}."""
    return {
        "name": proposal.name,
        "account_ids": list(wanted.account_ids),
        "connection_ids": list(wanted.connection_ids),
        "orchestrator": {"name": wanted.orchestrator, "ref": proposal.ref},
    }
