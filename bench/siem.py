"""`make bench-siem`: how fast the copy goes out and is fetched, a sink that was down, kills, and a million events in order.

How it runs, alone and in short, is told in bench/by_parts.py.
"""

from __future__ import annotations

from bench import by_parts, siem_down, siem_kill, siem_order, siem_pull, siem_push

SECONDS_MAX = 1500
PARTS: by_parts.Parts = {
    "push": ("the log pushed to a HEC stand-in, one core", siem_push.measure),
    "pull": ("the log fetched by one client, one core", siem_pull.measure),
    "down": ("a sink down for an hour, and the alerts meanwhile", siem_down.measure),
    "kill": ("kill -9 while the log is pushed", siem_kill.measure),
    "order": ("eight writers and three readers", siem_order.measure),
}


def main() -> None:
    by_parts.run(PARTS, SECONDS_MAX)


if __name__ == "__main__":
    main()
