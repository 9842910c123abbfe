"""`authwatch rules schema`: the JSON Schema by which editors complete and check rule files."""

from __future__ import annotations

import json

import click

from service.rules.json_schema import rule_file_schema


@click.command()
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of a rule file.

    alert_rules/rule.schema.json holds it; a rule file beside it begins with the line

        # yaml-language-server: $schema=./rule.schema.json
    """
    click.echo(as_text(), nl=False)


def as_text() -> str:
    return json.dumps(rule_file_schema(), indent=2, ensure_ascii=False) + "\n"
