"""What tests do to the server's processes that serve us."""

from __future__ import annotations

# Autovacuum may be in the database too, which only a superuser may end, and so may the test's own connections.
END_OURS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'authwatch' AND backend_type = 'client backend'
        AND pid <> pg_backend_pid()
"""
