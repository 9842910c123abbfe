"""Rules: what admins write in YAML, loaded strictly and judged purely."""

from __future__ import annotations

from service.rules.document import Problem
from service.rules.load import RuleBook, load_file, load_text
from service.rules.model import Rule
from service.rules.ruleset import Ruleset

__all__ = ["Problem", "Rule", "RuleBook", "Ruleset", "load_file", "load_text"]
