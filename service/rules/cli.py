"""`authwatch rules ...`: a command is one small file, and one line here."""

from __future__ import annotations

from service.command_line import Commands

# Those that read the database live outside this package, which does no I/O.
COMMANDS = {
    "check": "service.rules.check_command:check",
    "test": "service.rules.test_command:test_rules",
    "schema": "service.rules.schema_command:schema",
    "diff": "service.rules.diff_command:diff",
    "backtest": "service.backtest_command:backtest",
    "drill": "service.drill_command:drill",
}

rules = Commands(
    name="rules", help="Check, compare and try rule files; docs/rules.md says how to write one.", elsewhere=COMMANDS
)
