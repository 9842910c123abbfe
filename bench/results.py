"""The table at the end, and bench/RESULTS.md. What was written by hand between the notes' markers, at its top, stays."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bench.figure import Figure, shown

FILE = Path(__file__).with_name("RESULTS.md")
CRASH = Path(__file__).with_name("crash.md")
CRASH_HEADING = "## `make crash`"
BEGIN, END = "<!-- notes -->", "<!-- /notes -->"


def table(figures: Sequence[Figure]) -> str:
    """For the terminal: one figure, one paragraph of two lines."""
    lines = []
    for figure in figures:
        ratio = f", ratio {figure.ratio:.2f}" if figure.ratio is not None else ""
        control = f" | {figure.control_name}: {shown(figure.control, figure.digits)}" if figure.control else ""
        lines += [
            f"{'met    ' if figure.met else 'NOT MET'}  {figure.name}: {shown(figure.ours, figure.digits)} {figure.unit}{control}",
            f"         to reach: {figure.reach}{ratio}",
        ]
    return "\n".join(lines)


def markdown(figures: Sequence[Figure], machine: Sequence[tuple[str, str]], seconds: float, notes: str) -> str:
    missed = [figure for figure in figures if not figure.met]
    lines = ["# Results of `make bench`", ""]
    if missed:
        lines += ["**Not met:**", "", *(f"- {of.name}: {short(of)}; to reach: {of.reach}" for of in missed), ""]
    else:
        lines += ["Every figure was met.", ""]
    lines += [BEGIN, notes.strip("\n"), END, ""]
    lines += [
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {seconds / 60:.0f} minutes. Medians, in brackets the "
        "least and the greatest round. Each figure's control was measured in the same run, in turns with it; the ratio "
        "is the median of the rounds' own ratios. The load comes from a Python generator on the same cores.",
        "",
        *(f"- {name}: {value}" for name, value in machine),
        "",
        "| figure | measured | control | measured | ratio | to reach | |",
        "|---|---|---|---|---|---|---|",
        *(row(figure) for figure in figures),
        "",
        "## How it was measured",
        "",
        *(f"- {figure.name}: {'; '.join(figure.notes)}." for figure in figures if figure.notes),
        "",
    ]
    return "\n".join(lines).rstrip("\n") + "\n" + crash_section()


def crash_section() -> str:
    return f"\n{CRASH_HEADING}\n\n{CRASH.read_text().strip()}\n" if CRASH.exists() else ""


def put_crash() -> None:
    """After `make crash`, which measures none of the figures: its section, the last one, is written anew."""
    if FILE.exists():
        before = FILE.read_text().partition(CRASH_HEADING)[0].rstrip("\n")
        FILE.write_text(f"{before}\n{crash_section()}")


def row(figure: Figure) -> str:
    ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else "-"
    control = f"{shown(figure.control, figure.digits)} {figure.unit}" if figure.control else "-"
    met = "met" if figure.met else "**NOT MET**"
    return (
        f"| {figure.name} | {shown(figure.ours, figure.digits)} {figure.unit} | {figure.control_name} | {control} "
        f"| {ratio} | {figure.reach} | {met} |"
    )


def short(figure: Figure) -> str:
    ratio = f", {figure.ratio:.2f} of its control" if figure.ratio is not None else ""
    return f"{shown(figure.ours, figure.digits)} {figure.unit}{ratio}"


def notes_of(text: str) -> str:
    """What stands between the markers of an earlier file; "" where there is none."""
    _, found, rest = text.partition(BEGIN)
    notes, ended, _ = rest.partition(END)
    return notes.strip("\n") if found and ended else ""


def write(figures: Sequence[Figure], machine: Sequence[tuple[str, str]], seconds: float) -> None:
    notes = notes_of(FILE.read_text()) if FILE.exists() else ""
    if not notes and any(not figure.met for figure in figures):
        print(f"a figure is not met: say why, with its profile, between {BEGIN} and {END}")
    FILE.write_text(markdown(figures, machine, seconds, notes))
