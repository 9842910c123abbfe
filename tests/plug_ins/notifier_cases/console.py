"""What is printed here: nothing of it goes over a wire."""

from tests.plug_ins.notifier_cases.base import Cases

CASES = Cases(
    section=lambda _url: {"kind": "console", "name": "on-call"},
    seen=lambda _fake, printed: printed,
    secrets=(),
)
