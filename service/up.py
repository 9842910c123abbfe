"""`authwatch up`: the whole service, or the named parts of it, in one process group; readable top to bottom."""

from __future__ import annotations

import base64
import errno
import os
import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from service import children
from service.datadir import DEFAULT, DataDir
from service.embedded import Postgres, Redis
from service.errors import AuthwatchError, ConfigError
from service.parts import LEFTOVER_STOP, Commands, migrate, receiver, worker
from service.settings import Environment, load_settings
from service.sources import open_sources
from service.supervise import Part, Stopped, Supervisor

PORT_WAIT_SECONDS = 3.0  # a killed predecessor's receiver may still be going
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
PLACEHOLDER_DATABASE = "postgresql://127.0.0.1/"  # to judge the other settings before there is a database
SECRET, TOKEN = "SCALEKIT_WEBHOOK_SECRET", "AUTHWATCH_ADMIN_TOKEN"


class UpFailed(AuthwatchError):
    """`up` could not start the service; the message says why and how to mend it."""

    code = "up_failed"


@dataclass(frozen=True, kw_only=True)
class Options:
    host: str
    port: int
    data_dir: Path
    workers: int
    parts: frozenset[str]
    commands: Commands = field(default_factory=Commands)

    def url(self, host: str) -> str:
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def own_url(self) -> str:
        """Where we reach ourselves: "every address" is not one to call."""
        return self.url(ANY_ADDRESS.get(self.host, self.host))


def run(options: Options) -> int:
    """Runs until SIGINT or SIGTERM and gives the exit status. What stops the start is raised, with all parts ended.

    SIGHUP means "look at the files now", which the parts do every second in any case; it ends us only with our terminal.
    """
    asked: list[int] = []
    for how in (signal.SIGINT, signal.SIGTERM):
        signal.signal(how, lambda number, frame: asked.append(number))
    hung_up: list[int] = []
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # by nohup it is
        signal.signal(signal.SIGHUP, lambda number, frame: hung_up.append(number))
    had_terminal = has_terminal()

    def stop_asked() -> bool:
        return bool(asked) or (bool(hung_up) and had_terminal and not has_terminal())

    supervisor = Supervisor(say=say, stop_asked=stop_asked)
    try:
        _start(options, supervisor, stop_asked)
        supervisor.watch()
        say("stopping")
    except Stopped:
        say("stopping")
    finally:
        supervisor.stop()
    say("stopped")
    return 0


def has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def say(message: str) -> None:
    """To a person, on stderr. That nobody reads it any more is no reason to stop."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        return


def _start(options: Options, supervisor: Supervisor, stop_asked: Callable[[], bool]) -> None:
    data = DataDir(options.data_dir)
    data.make()
    data.hold(options.parts)
    for name in options.parts & {"receiver", "worker"}:
        children.end_leftover(children.read_pid(data.pid_file(name)), str(data.path), LEFTOVER_STOP)
    if "receiver" in options.parts:
        _wait_for_port(options)
    settings, made = _settings(options, data)

    servers = _embedded(options, data, settings)
    for server in servers:
        server.prepare()
        if stop_asked():
            raise Stopped
        children.rotate_log(server.log)
        say(f"starting {server.name}")
    supervisor.start(*map(_embedded_part, servers))
    for server in servers:
        settings["DATABASE_URL" if isinstance(server, Postgres) else "REDIS_URL"] = server.url
        settings |= server.whereabouts()
    data.write(settings)
    _tell_made(options, data, settings, made)

    environment = {**os.environ, **settings, "AUTHWATCH_DATA_DIR": str(data.path)}
    environment.setdefault("AUTHWATCH_PUBLIC_URL", options.own_url)
    if options.parts != {"redis"}:
        migrate(options.commands.migrate, data, environment, say=say)
    ours = []  # in this order, so that the receiver is stopped first
    if "worker" in options.parts:
        ours.append(worker(options.commands.worker, data, environment))
    if "receiver" in options.parts:
        ours.append(
            receiver(
                options.commands.receiver,
                data,
                environment,
                host=options.host,
                port=options.port,
                workers=options.workers,
                url=options.own_url,
            )
        )
    for part in ours:
        say(f"starting the {part.name}")
    supervisor.start(*ours)
    print(f"ready: {options.url(options.host)}", flush=True)


def _wait_for_port(options: Options) -> None:
    def usable_or_hopeless() -> bool:
        error = children.listen_error(options.host, options.port)
        return error is None or error.errno != errno.EADDRINUSE

    children.wait_until(usable_or_hopeless, PORT_WAIT_SECONDS)
    error = children.listen_error(options.host, options.port)
    if error is not None:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken by another program: stop that one" if taken else f"cannot be used ({error.strerror})"
        raise UpFailed(f"port {options.port} on {options.host} {why}, or choose another with --port")


def _settings(options: Options, data: DataDir) -> tuple[dict[str, str], list[str]]:
    """What we add to the environment of our parts, and the names of what was made just now.

    Every setting is judged here, before anything is started or made.
    """
    given, kept = Environment(os.environ), data.read()
    settings: dict[str, str] = {}
    for name, part in (("DATABASE_URL", "postgres"), ("REDIS_URL", "redis")):
        value = given.get(name) or (None if part in options.parts else kept.get(name))
        if value is not None:
            settings[name] = value
    wants_database = options.parts & {"receiver", "worker"} and "postgres" not in options.parts
    if wants_database and "DATABASE_URL" not in settings:
        raise ConfigError(
            f"DATABASE_URL is missing: set it, add postgres to --parts, or name with --data-dir the folder of an"
            f" `authwatch up` that runs it ({data.env_file} has none)"
        )
    if "receiver" in options.parts:
        settings["AUTHWATCH_URL"] = options.own_url
    made = []
    for name, make in ((SECRET, _make_secret), (TOKEN, _make_token)):
        if given.get(name) is None:
            if name not in kept:
                made.append(name)
            settings[name] = kept.get(name) or make()
    open_sources(load_settings({**os.environ, "DATABASE_URL": PLACEHOLDER_DATABASE, **settings}).sources)
    return settings, made


def _make_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def _make_token() -> str:
    return "aw_" + secrets.token_urlsafe(32)


def _embedded(options: Options, data: DataDir, settings: dict[str, str]) -> list[Postgres | Redis]:
    servers: list[Postgres | Redis] = []
    if "postgres" in options.parts and "DATABASE_URL" not in settings:
        servers.append(Postgres(data.path, progress=say))
    if "redis" in options.parts and "REDIS_URL" not in settings:
        servers.append(Redis(data.path, progress=say))
    return servers


def _embedded_part(server: Postgres | Redis) -> Part:
    written = server.log.stat().st_size if server.log.exists() else 0
    return Part(
        name=server.name,
        spawn=server.spawn,
        is_ready=server.is_ready,
        last_words=partial(children.last_line, server.log, written),
        stop_plan=server.stop_plan,
    )


def _tell_made(options: Options, data: DataDir, settings: dict[str, str], made: list[str]) -> None:
    """What was made is shown this once; later it is in the env file."""
    public_url = os.environ.get("AUTHWATCH_PUBLIC_URL", options.own_url).rstrip("/")
    if SECRET in made:
        say(f"\nwebhook secret (made now, kept in {data.env_file}): {settings[SECRET]}")
        say(f"register this URL at the provider, with that secret:  {public_url}/webhooks/scalekit")
    if TOKEN in made:
        say(f"admin token (made now, kept in {data.env_file}): {settings[TOKEN]}")
    if made:
        where = [] if data.path == Path(DEFAULT).resolve() else ["--data-dir", str(options.data_dir)]
        words = [_program(), "send", "token.refresh_failed", "--account-id", "ca_1", "--count", "3", *where]
        say(f"to try it, in another terminal:  {shlex.join(words)}\n")


def _program() -> str:
    """How this program can be called from here."""
    beside = Path(sys.executable).with_name("authwatch")
    found = shutil.which("authwatch")
    if found is not None and Path(found).resolve() == beside.resolve():
        return "authwatch"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)
