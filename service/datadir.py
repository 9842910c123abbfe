"""The data dir of `authwatch up`: the `env` file through which other commands find the service, and who holds which part."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import IO

from service.children import wait_until
from service.errors import AuthwatchError, ConfigError

DEFAULT = ".authwatch"
PARTS = ("postgres", "redis", "receiver", "worker")
LOCK_SECONDS = 2.0  # a killed predecessor lets go at once; its last children hold nothing


class InUse(AuthwatchError):
    """Another `authwatch up` has it."""

    code = "in_use"


class DataDir:
    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.env_file = self.path / "env"
        self._lock: IO[bytes] | None = None

    def log(self, part: str) -> Path:
        return self.path / "log" / f"{part}.log"

    def pid_file(self, part: str) -> Path:
        return self.path / "run" / f"{part}.pid"

    def make(self) -> None:
        try:
            make_private(self.path)
            (self.path / "run").mkdir(mode=0o700, exist_ok=True)
            (self.path / "log").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the data dir {self.path} cannot be used: {error.strerror}") from error

    def hold(self, parts: Iterable[str]) -> None:
        """Takes the parts for this process until it ends, however it ends. One byte of the lock file is one part, so
        that parts of one data dir may be run by several `up`, and each part only by one."""
        try:
            self._lock = open(self.path / "lock", "ab")  # held while we live
        except OSError as error:
            raise ConfigError(f"the data dir {self.path} cannot be used: {error.strerror}") from error
        for part in parts:

            def locked(byte: int = PARTS.index(part)) -> bool:
                assert self._lock is not None
                try:
                    fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
                except (BlockingIOError, PermissionError):
                    return False
                return True

            if not wait_until(locked, LOCK_SECONDS):
                raise InUse(
                    f"another `authwatch up` runs the {part} of {self.path} already:"
                    " stop it first, or name another folder with --data-dir"
                )

    def read(self) -> dict[str, str]:
        """What the env file says; nothing where there is none."""
        try:
            text = self.env_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"{self.env_file} cannot be read: {error.strerror}") from error
        lines = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
        return {name.strip(): value.strip() for name, value in lines}

    def write(self, values: Mapping[str, str]) -> None:
        """Puts these into the env file beside what it has, at once or not at all, for us alone to read."""
        merged = {**self.read(), **values}
        for name, value in merged.items():
            if "\n" in value:
                raise ConfigError(f"{name} has a line break in it, which no setting can have")
        beside = self.env_file.with_name("env.tmp")
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write("# Written by `authwatch up`: how the other commands find it. Keep it secret.\n")
                file.writelines(f"{name}={value}\n" for name, value in merged.items())
            beside.replace(self.env_file)
        except OSError as error:
            raise ConfigError(f"{self.env_file} cannot be written: {error.strerror}") from error


def load_into(environment: MutableMapping[str, str], path: Path) -> None:
    """Fills what the environment leaves out from the env file of a data dir. `NAME_FILE` counts as given."""
    found = DataDir(path)
    environment["AUTHWATCH_DATA_DIR"] = str(found.path)
    for name, value in found.read().items():
        if name not in environment and f"{name}_FILE" not in environment:
            environment[name] = value


def make_private(folder: Path) -> None:
    """Makes a folder for us alone; root's may be passed through (not listed), for the servers' user."""
    if not folder.exists():
        folder.mkdir(parents=True)
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
