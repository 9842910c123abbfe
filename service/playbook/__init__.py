"""The playbook: from what a provider answered to its class and the one right response. Pure, table-driven, no I/O."""

from __future__ import annotations

from service.playbook.alerts import what_to_do, with_playbook
from service.playbook.classify import Answer, Retry, classify
from service.playbook.words import ACTIONS, ERROR_CLASSES

__all__ = ["ACTIONS", "Answer", "ERROR_CLASSES", "Retry", "classify", "what_to_do", "with_playbook"]
