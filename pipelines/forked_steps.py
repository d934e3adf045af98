"""The steps of a local run as forks of one process that has imported their libraries.

KFP's SubprocessRunner starts a Python for every step, and each spends about four seconds on importing torch and MLflow
anew: more than half of a short run. multiprocessing's fork server, a process with a single thread and nothing but these
imports in it, does that once; a step begins within milliseconds, and is otherwise what KFP would have started.
"""

import atexit
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path

_EXECUTOR = "kfp.dsl.executor_main"
_IN_A_STEP = {"_KFP_RUNTIME": "true"}  # kfp then imports what a step needs, and no more
SUPPORTED = sys.platform == "linux"  # elsewhere a fork after such imports may crash, or cannot be
_SOCKET, _LONGEST_PATH = "pymp-xxxxxxxx/listener-xxxxxxxx", 107  # multiprocessing's, and what Linux allows for it


def start_importing() -> None:
    """Start the process that steps are forked from; it imports while this one does other things."""
    if not SUPPORTED:
        return
    forkserver.set_forkserver_preload(["pipelines.step_libraries"])
    os.environ.update(_IN_A_STEP)
    try:
        with _short_folder():
            forkserver.ensure_running()
    finally:
        for name in _IN_A_STEP:
            del os.environ[name]


@contextmanager
def _short_folder() -> Iterator[None]:
    """Have temporary folders inside the block below /tmp, where the path of the usual one is too long for a socket."""
    usual, before = tempfile.gettempdir(), tempfile.tempdir
    if len(os.fsencode(Path(usual) / _SOCKET)) > _LONGEST_PATH:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def forked_steps() -> Iterator[None]:
    """Have KFP's SubprocessRunner fork its steps inside the block, where the system can."""
    from kfp.local import subprocess_task_handler

    kfps_own = subprocess_task_handler.run_local_subprocess

    def run(full_command: list[str], env_vars: Mapping[str, str] | None = None) -> int:
        match full_command:
            case ["sh", "-ec", script, source, *arguments] if _EXECUTOR in script:
                return run_step(source, arguments, {**os.environ, **(env_vars or {}), **_IN_A_STEP})
        return int(kfps_own(full_command, env_vars))

    subprocess_task_handler.run_local_subprocess = run if SUPPORTED else kfps_own
    try:
        yield
    finally:
        subprocess_task_handler.run_local_subprocess = kfps_own


def run_step(source: str, arguments: list[str], environment: dict[str, str]) -> int:
    """Run KFP's executor on a component's source in a fork, print what it prints, and return its exit status.

    Args:
        source: the component's module.
        arguments: of the executor.
        environment: the step's, as a whole.

    Returns:
        0 when the step is done; the negative number of the signal that ended it, if one did.
    """
    context = get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "ephemeral_component.py"
        module.write_text(source)
        receiver, sender = context.Pipe(duplex=False)
        line = [_EXECUTOR, "--component_module_path", str(module), *arguments]
        process = context.Process(target=_become_step, args=(line, environment, sender))
        process.start()
        sender.close()
        with receiver, open(receiver.fileno(), errors="replace", closefd=False) as output:
            for text in output:
                print(text, end="")  # noqa: T201  (KFP indents what is printed)
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _become_step(line: list[str], environment: dict[str, str], sender: Connection) -> None:
    """Be the process that `python -m kfp.dsl.executor_main` would be."""
    for stream in (sys.stdout, sys.stderr):
        os.dup2(sender.fileno(), stream.fileno())
    sender.close()
    os.environ.clear()
    os.environ.update(environment)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(line[-1])  # its name in ps and top: the command line is the fork server's
    sys.argv = line
    try:
        runpy.run_module(_EXECUTOR, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing's processes leave out
        sys.stdout.flush()
        sys.stderr.flush()
