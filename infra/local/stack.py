"""A stack: the three servers of a folder, started in their order, ended in the reverse, and what finds them."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from infra.accounts import PIPELINE_BUCKET
from infra.local.database import Database
from infra.local.object_store import ObjectStore
from infra.local.settings import has_settings, open_settings, write_private
from infra.local.tracking import TrackingServer
from metalearn_core.errors import MetalearnError, UsageError

Server = Database | ObjectStore | TrackingServer
_PATIENCE_S = 180


@dataclass(frozen=True)
class ServerStatus:
    """One server: whether it runs, and where it listens."""

    name: str
    running: bool
    address: str


class Stack:
    """The servers of a folder. Making this object starts nothing; settings are made where there are none.

    Args:
        folder: of the stack: settings, data, logs. It belongs to its owner alone.
        s3_endpoint: where clients, the MLflow server among them, find the S3 store: that of a proxy before it, say.
    """

    def __init__(self, folder: Path, s3_endpoint: str | None = None) -> None:
        self.folder = folder.absolute()
        self.settings = open_settings(self.folder)
        self.database = Database(self.folder, self.settings)
        self.store = ObjectStore(self.folder, self.settings, s3_endpoint)
        self.tracking = TrackingServer(self.folder, self.settings, self.database, self.store)
        self.servers: tuple[Server, ...] = (self.database, self.store, self.tracking)

    @classmethod
    def at(cls, folder: Path) -> "Stack":
        """Return the stack of a folder where one was made before.

        Raises:
            UsageError: none was.
        """
        if not has_settings(folder):
            raise UsageError(f"{folder}: there is no stack; `up` makes one")
        return cls(folder)

    @property
    def environment_file(self) -> Path:
        """The shell's lines that set what clients need."""
        return self.folder / "environment"

    @property
    def storage(self) -> str:
        """Where pipelines may keep their data."""
        return f"s3://{PIPELINE_BUCKET}"

    def environment(self) -> dict[str, str]:
        """Return what clients find the servers by: MLflow's and boto3's own variables."""
        return {**self.tracking.client_environment, **self.store.client_environment(self.settings.pipeline_key)}

    def up(self) -> None:
        """Start each server that does not run, and wait until it serves.

        Raises:
            MetalearnError: one does not come up; the line has the end of its log.
        """
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.environment().items()]
        write_private(self.environment_file, "\n".join(lines) + "\n")
        for server in self.servers:
            self.start(server.name)

    def start(self, name: str) -> None:
        """Start one server where it does not run, and wait until it serves; raises as `up` does."""
        server = self._server(name)
        end = time.monotonic() + _PATIENCE_S
        if not server.process.running():
            server.start()
        while not server.ready():
            if not server.process.running():
                raise MetalearnError(f"{name}: ended early: {server.process.last_lines()} (log: {server.process.log})")
            if time.monotonic() > end:
                raise MetalearnError(f"{name}: no answer after {_PATIENCE_S} seconds (log: {server.process.log})")
            time.sleep(0.1)

    def down(self) -> None:
        """End the servers, the last first; their data stay."""
        for server in reversed(self.servers):
            server.stop()

    def kill(self, name: str) -> None:
        """End one server as a power cut does."""
        self._server(name).process.kill()

    def status(self) -> list[ServerStatus]:
        """Return how each server is."""
        return [ServerStatus(one.name, one.process.running(), one.address) for one in self.servers]

    def _server(self, name: str) -> Server:
        return next(server for server in self.servers if server.name == name)
