"""What a pause is worth where the work really runs: every scenario, against any `RealServer`.

test_<kind>.py has a `server` fixture and a class that inherits these; `ground` is of conftest.py. One server and one Authwatch
serve a whole file, and each scenario has workflows and an account of its own.
"""

from __future__ import annotations

import time

from tests.orchestrators.ground import STRAIGHT, Ground, all_of
from tests.orchestrators.real import RealServer, say

STARTS_SECONDS_MAX = 300.0  # until a schedule has started something, on a busy machine
SOON_SECONDS_MAX = 120.0  # on a machine that does much else besides
LOOKS_MAX = 4  # what was being started at the moment of the pause may take a while to begin
CREDENTIALS_SECONDS_MAX = 200.0  # what was refused is asked again once a minute
BACK_SECONDS_MAX = 240.0  # what found nobody is tried again ever more rarely
BULK = 200
BULK_SECONDS_MAX = 300.0


def quiet(server: RealServer, ref: str) -> int:
    """How often the work has begun, once nothing began for longer than its schedule's period."""
    for _ in range(LOOKS_MAX):
        done = server.works(ref)
        time.sleep(server.quiet_seconds)
        if server.works(ref) == done:
            return done
    raise AssertionError(f"it went on starting work for {LOOKS_MAX * server.quiet_seconds:g} s of pause")


class Scenarios:
    def test_the_work_stops_with_the_account_and_starts_again_with_it(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("story", busy=True)
        ground.wait("the work runs", lambda: server.works(ref) > 0, STARTS_SECONDS_MAX)
        before = server.looks(ref)
        account = ground.pauses("story", ref)
        assert not ground.gate("story")
        done = quiet(server, ref)
        ground.heals(account)
        said = ground.answered("story", "resume")
        assert (said["state"], said["answer"]["status"]) == ("done", "resumed"), said
        assert not server.is_paused(ref)
        assert server.looks(ref) == before
        assert ground.gate("story")
        took = ground.wait("the work runs again", lambda: server.works(ref) > done, STARTS_SECONDS_MAX)
        say(f"  {server.kind}: nothing began in {server.quiet_seconds:g} s of pause; {took:.0f} s after it, work again")
        server.pause(ref)  # its runs take time from the other scenarios

    def test_what_a_person_had_paused_first_stays_paused(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("persons")
        server.pause(ref)
        before, changes = server.looks(ref), len(ground.passage.changes())
        account = ground.put("persons", ref)
        ground.breaks(account)
        said = ground.answered("persons", "pause")
        assert (said["state"], said["answer"]["was_paused"]) == ("done", True), said
        ground.heals(account)
        said = ground.answered("persons", "resume")
        assert (said["state"], said["answer"]["status"]) == ("done", "left"), said
        assert server.is_paused(ref)
        assert server.looks(ref) == before
        assert len(ground.passage.changes()) == changes, "nothing was to be changed there"

    def test_what_a_person_resumed_during_our_hold_is_left_to_them(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("overruled")
        before = server.looks(ref)
        account = ground.pauses("overruled", ref)
        server.resume(ref)
        changes = len(ground.passage.changes())
        ground.heals(account)
        said = ground.answered("overruled", "resume")
        assert (said["state"], said["answer"]["status"]) == ("done", "left"), said
        assert not server.is_paused(ref)
        assert server.looks(ref) == before
        assert len(ground.passage.changes()) == changes

    def test_one_deleted_during_our_hold_is_said_to_be_gone(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("deleted")
        account = ground.pauses("deleted", ref)
        server.delete(ref)
        ground.heals(account)
        said = ground.answered("deleted", "resume")
        assert (said["state"], said["answer"]["status"]) == ("done", "workflow_gone"), said
        assert ground.look("deleted")["state"] == "active"
        # And a pause of what is not there says so at once, with the mend; the gate denies all the same.
        ground.breaks(account)
        said = ground.answered("deleted", "pause")
        assert said["state"] == "failed", said
        assert "PUT /v1/workflows" in said["error"], said
        assert not ground.gate("deleted")

    def test_one_renamed_during_our_hold(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("renamed")
        before = server.looks(ref)
        account = ground.pauses("renamed", ref)
        new = server.rename(ref, "renamed-anew")
        was_paused, changes = server.is_paused(new), len(ground.passage.changes())
        ground.heals(account)
        said = ground.answered("renamed", "resume")
        if server.rename_keeps:
            assert (said["state"], said["answer"]["status"]) == ("done", "resumed"), said
            assert not server.is_paused(new)
            assert server.looks(new) == before
        else:
            assert (said["state"], said["answer"]["status"]) == ("done", "workflow_gone"), said
            assert server.is_paused(new) == was_paused
            assert len(ground.passage.changes()) == changes

    def test_credentials_that_expire_during_our_hold_are_waited_for(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("expired")
        before = server.looks(ref)
        account = ground.pauses("expired", ref)
        server.break_credentials()
        try:
            ground.heals(account)

            def refused() -> bool:
                now = ground.asked("expired")
                return now["asked"] == "resume" and bool(now["error"])

            ground.wait("the resume is refused", refused, BACK_SECONDS_MAX)
            said = ground.asked("expired")
            assert said["state"] in ("pending", "running"), said
            assert any(word in said["error"] for word in ("401", "403")), said
        finally:
            server.mend_credentials()
        assert server.is_paused(ref), "it was not resumed while nobody let us in"
        said = ground.answered("expired", "resume", seconds=CREDENTIALS_SECONDS_MAX)
        assert (said["state"], said["answer"]["status"]) == ("done", "resumed"), said
        assert not server.is_paused(ref)
        assert server.looks(ref) == before

    def test_one_that_is_down_for_the_whole_incident_is_never_touched(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("down")
        before = server.looks(ref)
        account = ground.put("down", ref, via=STRAIGHT)
        server.stop()
        try:
            ground.breaks(account)
            ground.wait("the gate denies", lambda: not ground.gate("down"), SOON_SECONDS_MAX)
            ground.wait("the pause is tried", lambda: ground.asked("down").get("attempts", 0) > 0, SOON_SECONDS_MAX)
            assert ground.asked("down")["state"] in ("pending", "running")
            ground.heals(account)
            ground.wait("the gate lets through", lambda: ground.gate("down"), SOON_SECONDS_MAX)
        finally:
            server.start()
        ground.wait("nothing is left to do", ground.nothing_to_do, BACK_SECONDS_MAX)
        assert not server.is_paused(ref)
        assert server.looks(ref) == before

    def test_one_that_is_down_when_it_is_to_be_resumed_is_resumed_once_it_is_back(
        self, server: RealServer, ground: Ground
    ) -> None:
        ref = server.create("later")
        before = server.looks(ref)
        account = ground.put("later", ref, via=STRAIGHT)
        ground.breaks(account)
        assert ground.answered("later", "pause")["state"] == "done"
        server.stop()
        try:
            ground.heals(account)
            ground.wait("the resume is tried", lambda: ground.asked("later")["attempts"] > 0, SOON_SECONDS_MAX)
        finally:
            server.start()
        said = ground.answered("later", "resume", seconds=BACK_SECONDS_MAX)
        assert (said["state"], said["answer"]["status"]) == ("done", "resumed"), said
        assert not server.is_paused(ref)
        assert server.looks(ref) == before

    def test_two_hundred_workflows_of_one_account(self, server: RealServer, ground: Ground) -> None:
        refs = server.create_many(BULK, "bulk")
        assert len(set(refs)) == BULK
        persons, ours = refs[0], refs[1:]
        server.pause(persons)
        before = {ref: server.looks(ref) for ref in refs}
        for number, ref in enumerate(refs):
            account = ground.put(f"bulk-{number}", ref, account="ca_bulk")
        ground.breaks(account)
        paused = ground.wait("all are paused", all_of(server.is_paused, refs), BULK_SECONDS_MAX)
        ground.wait("all is written down", ground.nothing_to_do, BULK_SECONDS_MAX)
        ground.heals(account)
        resumed = ground.wait("all run", all_of(lambda ref: not server.is_paused(ref), ours), BULK_SECONDS_MAX)
        ground.wait("all is written down", ground.nothing_to_do, BULK_SECONDS_MAX)
        assert server.is_paused(persons)
        assert {ref: server.looks(ref) for ref in refs} == before
        say(
            f"  {server.kind}: {BULK} workflows paused in {paused:.1f} s, all but a person's one resumed in {resumed:.1f} s"
        )

    def test_a_worker_killed_between_the_pause_and_its_record(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("killed-pause")
        before = server.looks(ref)
        account = ground.put("killed-pause", ref)
        ground.passage.hold_next()
        ground.breaks(account)
        assert ground.passage.held.wait(SOON_SECONDS_MAX), "the pause never came"
        assert server.is_paused(ref)
        ground.kill_worker()
        ground.passage.let_go()
        ground.running.start("worker")
        said = ground.answered("killed-pause", "pause", seconds=BACK_SECONDS_MAX)
        # Our own pause is not taken for a person's, which would never be resumed.
        assert (said["state"], said["answer"]["was_paused"], said["attempts"]) == ("done", False, 2), said
        ground.heals(account)
        said = ground.answered("killed-pause", "resume")
        assert (said["state"], said["answer"]["status"]) == ("done", "resumed"), said
        assert not server.is_paused(ref)
        assert server.looks(ref) == before

    def test_a_worker_killed_between_the_resume_and_its_record(self, server: RealServer, ground: Ground) -> None:
        ref = server.create("killed-resume")
        before = server.looks(ref)
        account = ground.pauses("killed-resume", ref)
        ground.passage.hold_next()
        ground.heals(account)
        assert ground.passage.held.wait(SOON_SECONDS_MAX), "the resume never came"
        assert not server.is_paused(ref)
        ground.kill_worker()
        ground.passage.let_go()
        ground.running.start("worker")
        said = ground.answered("killed-resume", "resume", seconds=BACK_SECONDS_MAX)
        assert (said["state"], said["answer"]["status"]) == ("done", "resumed"), said
        assert not server.is_paused(ref)
        assert server.looks(ref) == before
