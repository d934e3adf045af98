"""A server's process: started apart from the one that starts it, found again by its number, and ended."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from infra.local.settings import write_private
from metalearn_core.errors import MetalearnError

_KEPT = ("HOME", "LANG", "PATH", "TMPDIR", "USER")
_START = '"$@" </dev/null >>"$0" 2>&1 & echo $!'


class Process:
    """One server by its name; `folder` holds its log and its number.

    Args:
        name: of the server, and of its files.
        folder: where they lie.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._file = folder / f"{name}.pid"
        self._folder = folder

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the server, in a session of its own: it outlives its starter, and a signal to that does not reach it.

        Args:
            command: the program and its arguments; no secrets, since all users of a machine can read these.
            environment: beside the few variables that every program needs; nothing else is passed on.
        """
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        started = subprocess.run(
            ["/bin/sh", "-c", _START, str(self.log), *command],
            cwd=self._folder,
            env={**kept, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            start_new_session=True,
        )
        pid = int(started.stdout)
        try:
            created = psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            created = 0.0
        write_private(self._file, json.dumps({"pid": pid, "created": created}))

    def running(self) -> bool:
        """Return whether the server that was started last still runs."""
        return self._found() is not None

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> None:
        """Ask the server to end, and kill it where it has not after `timeout_s` seconds."""
        found = self._found()
        if found is None:
            return
        found.send_signal(how)
        end = time.monotonic() + timeout_s
        while self.running():
            if time.monotonic() > end:
                self.kill()
                return
            time.sleep(0.05)

    def kill(self) -> None:
        """End the server and all that it started, with no chance to save anything: what a power cut does."""
        found = self._found()
        if found is None:
            return
        everyone = [found, *found.children(recursive=True)]
        for process in everyone:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(everyone, timeout=10)

    def last_lines(self, count: int = 3) -> str:
        """Return the end of the server's log in one line."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return " / ".join(line.strip() for line in lines[-count:] if line.strip())

    def _found(self) -> psutil.Process | None:
        try:
            kept = json.loads(self._file.read_text())
            process = psutil.Process(kept["pid"])
            same = abs(process.create_time() - kept["created"]) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None


def program(name: str, package: str, *folders: Path) -> str:
    """Return where a program lies, or say which package brings it.

    Args:
        name: of the program.
        package: of the package index, for the error.
        folders: where it is looked for, before the PATH.
    """
    path = os.pathsep.join([*(str(folder) for folder in folders), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        raise MetalearnError(f"{name}: there is no such program; pip install '.[dev]' brings it ({package})")
    return found
