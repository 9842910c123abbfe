"""`authwatch rules ...`: a command is one small file, and one line here."""

from __future__ import annotations

from service.command_line import Commands

rules = Commands(
    name="rules",
    help="Check, compare and try rule files; docs/rules.md says how to write one.",
    elsewhere={
        "check": "service.rules.check_command:check",
        "schema": "service.rules.schema_command:schema",
        "diff": "service.rules.diff_command:diff",
    },
)
