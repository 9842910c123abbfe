"""docker-compose.yml and the Dockerfile keep their promises on paper; `make compose-test` runs them for real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from service.cli import authwatch

ROOT = Path(__file__).resolve().parents[2]
OURS = ("migrate", "receiver", "worker")
SERVERS = ("postgres", "redis")
USER = "10001:10001"
LIBPQ = {"PGPASSWORD"}  # read by the Postgres driver, not by us


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "docker-compose.yml")
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> list[str]:
    """Its instructions, each on one line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_file_has_the_five_services(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*OURS, *SERVERS}


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_without_rights(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["user"] == USER
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    for volume in service.get("volumes", []):
        assert volume.endswith(":ro") if isinstance(volume, str) else volume["read_only"] is True


@pytest.mark.parametrize("name", ["receiver", "worker", *SERVERS])
def test_what_goes_on_running_has_a_health_check_and_comes_back(compose: dict[str, Any], name: str) -> None:
    service = compose["services"][name]
    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["receiver", "worker"])
def test_a_health_check_in_python_compiles(compose: dict[str, Any], name: str) -> None:
    cmd, python, dash_c, program = compose["services"][name]["healthcheck"]["test"]
    assert (cmd, python, dash_c) == ("CMD", "python", "-c")
    compile(program, name, "exec")


def test_only_the_receiver_is_published_and_only_on_loopback(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert list(published) == ["receiver"]
    assert all(port.startswith("127.0.0.1:") for port in published["receiver"])


def test_nothing_of_ours_starts_before_the_migrations_are_done(compose: dict[str, Any]) -> None:
    assert compose["services"]["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert compose["services"]["migrate"]["restart"] == "no"
    for name in ("receiver", "worker"):
        depends_on = compose["services"][name]["depends_on"]
        assert depends_on["migrate"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_of_the_command_line(compose: dict[str, Any], name: str) -> None:
    words = compose["services"][name]["command"]
    assert CliRunner().invoke(authwatch, [*words, "--help"]).exit_code == 0


@pytest.mark.parametrize("name", OURS)
def test_every_variable_passed_on_is_one_we_know(compose: dict[str, Any], name: str) -> None:
    read = "".join(
        (ROOT / "service" / file).read_text(encoding="utf-8")
        for file in ("settings.py", "slack_settings.py", "observe.py")
    )
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    for variable in compose["services"][name]["environment"].keys() - LIBPQ:
        assert f'"{variable}"' in read or f"`{variable}`" in told, f"nobody reads {variable}"


def test_no_variable_that_start_up_reads_is_held_back(compose: dict[str, Any]) -> None:
    settings = "".join((ROOT / "service" / file).read_text() for file in ("settings.py", "slack_settings.py"))
    read = set(re.findall(r'"((?:AUTHWATCH|SCALEKIT|SLACK|SPLUNK)_[A-Z_]+)"', settings))
    assert len(read) > 10
    # The rules are mounted, and a container has no data dir.
    held_back = {"AUTHWATCH_RULES", "AUTHWATCH_DATA_DIR"}
    for name in ("receiver", "worker"):
        assert read - held_back <= set(compose["services"][name]["environment"])


@pytest.mark.parametrize("name", ["receiver", "worker"])
def test_a_secret_can_change_while_it_runs(compose: dict[str, Any], name: str) -> None:
    """A folder, since a file that was replaced is not seen through a mount of the old one; none is needed to start."""
    service = compose["services"][name]
    assert "${AUTHWATCH_SECRETS:-webhook-secrets}:/run/authwatch:ro" in service["volumes"]
    assert "webhook-secrets" in compose["volumes"]
    assert "SCALEKIT_WEBHOOK_SECRET_FILE" in service["environment"]


def test_a_secret_that_is_not_set_stays_unset(compose: dict[str, Any]) -> None:
    ours = ("AUTHWATCH_", "SCALEKIT_", "SLACK_", "SPLUNK_")
    for name in OURS:
        passed = compose["services"][name]["environment"]
        assert {passed[variable] for variable in passed if variable.startswith(ours)} <= {None}


def test_the_image_holds_what_the_lock_says_and_runs_as_nobody_special(dockerfile: list[str]) -> None:
    assert dockerfile[0].startswith("ARG PYTHON_IMAGE=python:3.")
    installs = [line for line in dockerfile if " install " in line]
    assert len(installs) == 2
    assert "--require-hashes -r requirements-image.lock" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]
    assert [line for line in dockerfile if line.startswith("USER ")] == [f"USER {USER}"]
    for instruction in ("ENTRYPOINT", "CMD"):
        assert [line for line in dockerfile if line.startswith(f'{instruction} ["')], f"{instruction} is not a list"


def test_the_image_has_what_every_sink_needs_in_the_versions_that_are_tested() -> None:
    def pinned(name: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9-]+==[^ ]+", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))

    image = pinned("requirements-image.lock")
    assert pinned("requirements.lock") <= image <= pinned("requirements-dev.lock")
    assert {one.partition("==")[0] for one in image} >= {"botocore", "setuptools"}


def test_what_the_image_copies_is_let_through_to_it(dockerfile: list[str]) -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    copies = [line.split()[1:-1] for line in dockerfile if line.startswith("COPY ") and "--from" not in line]
    assert {path for paths in copies for path in paths} == let_through
    assert all((ROOT / path).exists() for path in let_through)


def test_the_servers_of_the_tests_are_those_of_compose(compose: dict[str, Any]) -> None:
    used = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    for name in SERVERS:
        assert f'"{compose["services"][name]["image"]}"' in used
