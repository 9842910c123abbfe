"""A worker whose waits between tries are a named fraction of the real ones. `bench.weather` starts it; no setting of the
service does this, so that nothing outside the bench can.
"""

from __future__ import annotations

import argparse
from unittest.mock import patch

from workers import act, main, outcomes


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faster", type=float, required=True, help="1 is real time")
    faster = parser.parse_args().faster
    backoff = tuple(seconds / faster for seconds in outcomes.BACKOFF_SECONDS)
    with (
        patch.object(outcomes, "BACKOFF_SECONDS", backoff),
        patch.object(act, "QUIET_SECONDS_MAX", act.QUIET_SECONDS_MAX / faster),
    ):
        main.main()


if __name__ == "__main__":
    run()
