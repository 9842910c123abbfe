"""Holds as they should be, small enough to be read at once: one workflow, two accounts, two rules that watch each account.
The rule `at-once` lets go when the account is well again, `later` only after a wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ACCOUNTS, RULES = ("a", "b"), ("at-once", "later")
COMES_BACK = ("dependency_dropped", "workflow_inactive", "workflow_deleted")
Key = tuple[str, str, int]  # rule, account, number of the account's episode


@dataclass
class Span:
    """One time that something held it; `key` None: a person."""

    key: Key | None
    expires: bool = False
    release: str | None = None


@dataclass
class Reference:
    others: bool  # another active workflow depends on both accounts, whatever this one does
    exists: bool = False
    active: bool = True
    auto: bool = True
    whole: bool = True  # a hold of an account stops all of it
    depends: frozenset[str] = frozenset()
    broken: set[str] = field(default_factory=set)
    episodes: dict[str, int] = field(default_factory=dict)  # those that are open, by account
    begun: int = 0
    waited: set[Key] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)
    asked: bool = False  # what the orchestrator was last asked: to pause it

    @property
    def held(self) -> list[Span]:
        return [span for span in self.spans if span.release is None]

    @property
    def paused(self) -> bool:
        return any(span.key is None or self.whole for span in self.held)

    @property
    def state(self) -> str:
        return "gone" if not self.exists else "inactive" if not self.active else "paused" if self.paused else "active"

    def let_go(self, spans: list[Span], reason: str) -> None:
        for span in spans:
            span.release = reason

    def put(self, depends: frozenset[str], *, active: bool, auto: bool, whole: bool) -> None:
        self.exists, self.depends, self.active, self.auto, self.whole = True, depends, active, auto, whole
        alerts = [span for span in self.held if span.key is not None]
        if active:
            self.let_go([span for span in alerts if span.key and span.key[1] not in depends], "dependency_dropped")
        else:
            self.let_go(alerts, "workflow_inactive")

    def delete(self) -> None:
        self.let_go(self.held, "workflow_deleted")
        self.exists = self.asked = False

    def pause(self, *, expires: bool) -> None:
        span = next((span for span in self.held if span.key is None), None)
        if span is None:
            self.spans.append(span := Span(None))
        span.expires = expires

    def resume(self) -> None:
        self.let_go(self.held, "person")

    def expire(self) -> None:
        self.let_go([span for span in self.held if span.expires], "expired")

    def wait(self) -> None:
        """Longer than `later` waits: whatever is over has been so for long enough."""
        self.waited |= {span.key for span in self.held if span.key and self.episodes.get(span.key[1]) != span.key[2]}

    def settle(self) -> None:
        """What follows, after each of the above, from how everything now stands."""
        mine = self.depends if self.exists and self.active else frozenset()
        for account in ACCOUNTS:
            if account in self.broken and (self.others or account in mine):
                self.begun += account not in self.episodes
                self.episodes.setdefault(account, self.begun)
            else:
                self.episodes.pop(account, None)
        for account in mine & self.episodes.keys():
            for key in ((rule, account, self.episodes[account]) for rule in RULES):
                last = next((span for span in reversed(self.spans) if span.key == key), Span(key, release="never"))
                if last.release in ("never", *COMES_BACK):
                    self.spans.append(Span(key))
        well = [span for span in self.held if span.key and self.auto and span.key[1] not in self.broken]
        self.let_go([s for s in well if s.key and (s.key[0] == "at-once" or s.key in self.waited)], "account_well")
        if self.exists and (self.paused or self.active):  # of an inactive one nothing is started
            self.asked = self.paused
