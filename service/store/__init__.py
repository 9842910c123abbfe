"""Tables and queries: functions that take a connection and give plain values."""
