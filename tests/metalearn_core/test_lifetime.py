"""No step runs on when the process that started the run is gone, however it went."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from metalearn_core.lifetime import HOST_VARIABLE, OWNER_VARIABLE, host_value, owner_runs, owner_value

OWNER = r"""
import os, subprocess, sys, time
from metalearn_core.lifetime import OWNER_VARIABLE, owner_value
environment = {**os.environ, OWNER_VARIABLE: owner_value()}
code = "import time; from metalearn_core.lifetime import end_with_owner\n"
code += "end_with_owner(); print(0, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_owner_takes_its_steps_with_it() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    child.wait(timeout=10)


def test_a_step_lives_while_its_owner_does() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        child = psutil.Process(int(owner.stdout.readline()))
        time.sleep(1.5)
        assert child.is_running()
    finally:
        owner.kill()
        owner.wait()
        child.wait(timeout=10)


def test_an_owner_is_known_by_its_id_and_its_start() -> None:
    assert owner_runs(owner_value())
    pid, started = owner_value().split(":")
    assert not owner_runs(f"{pid}:{float(started) - 100}")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    value = f"{ended.pid}:{psutil.Process(ended.pid).create_time()}"
    ended.wait()
    assert not owner_runs(value)


def test_what_names_no_owner_is_left_alone() -> None:
    assert owner_runs("") and owner_runs("somebody")


def test_without_an_owner_nothing_is_watched() -> None:
    assert OWNER_VARIABLE not in os.environ
    code = (
        "import threading; from metalearn_core.lifetime import end_with_owner\n"
        "end_with_owner(); print(threading.active_count())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


FILE_OWNER = OWNER.replace("owner_value", "hold").replace("hold()", "hold(pathlib.Path(sys.argv[1]))")
FILE_OWNER = f"import pathlib\n{FILE_OWNER}"


def test_a_killed_owner_that_holds_a_file_takes_its_steps_with_it(tmp_path: Path) -> None:
    file = tmp_path / "owner.lock"
    owner = subprocess.Popen([sys.executable, "-c", FILE_OWNER, str(file)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    assert owner_runs(f"file:{file}")
    time.sleep(1)
    assert child.is_running()
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    child.wait(timeout=10)
    assert not owner_runs(f"file:{file}")


def test_a_step_lives_where_its_owners_lock_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "owner.lock").touch()
    code = (
        "import threading; from metalearn_core.lifetime import end_with_owner\n"
        "end_with_owner(); print(threading.active_count())"
    )
    environment = {**os.environ, OWNER_VARIABLE: f"file:{tmp_path}/owner.lock"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "1\n"


def test_a_container_says_nothing_of_processes_by_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWNER_VARIABLE, "file:/runs/owner.lock")
    assert owner_runs("1:0")
    assert owner_runs("file:/nowhere/owner.lock")


def test_a_container_has_the_name_of_its_owners_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    own = host_value()
    monkeypatch.setenv(HOST_VARIABLE, "laptop 1234")
    assert host_value() == "laptop 1234" != own
