"""A step that is forked is what KFP would have started: its output, its status, its environment, its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.forked_steps import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="steps are forked on Linux alone")

RUN = """
import os, sys
from pipelines.forked_steps import forked_steps, start_importing

if __name__ == "__main__":
    start_importing()
    import kfp.local.subprocess_task_handler as handler
    from kfp.dsl.component_factory import _get_command_and_args_for_lightweight_component as lightweight
    import components

    command, arguments = lightweight(components.probe)
    arguments = [os.environ["EXECUTOR_INPUT"] if "{{" in one else one for one in arguments]
    with forked_steps():
        print("status", handler.run_local_subprocess([*command, *arguments], {"GIVEN": "by KFP"}))
        print("other", handler.run_local_subprocess([sys.executable, "-c", "raise SystemExit(7)"]))
"""
TOO_LONG_FOR_A_SOCKET = "temporary" * 10
EXECUTOR_INPUT = '{"inputs": {}, "outputs": {"outputFile": "%s"}}'


@pytest.fixture
def probe(tmp_path: Path):
    """Run a component whose body is given, by KFP's handler inside `forked_steps`; return what is printed."""

    def run(*body: str) -> tuple[str, str]:
        lines = ["from kfp import dsl", "def probe():", *(f"    {line}" for line in body)]
        (tmp_path / "components.py").write_text("\n".join(lines))
        (tmp_path / "run.py").write_text(RUN)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]),
            "EXECUTOR_INPUT": EXECUTOR_INPUT % (tmp_path / "out.json"),
            "TMPDIR": str(tmp_path / TOO_LONG_FOR_A_SOCKET),
        }
        (tmp_path / TOO_LONG_FOR_A_SOCKET).mkdir()
        done = subprocess.run(
            [sys.executable, tmp_path / "run.py"],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "other 7", "what is no step is left to KFP"
        left = [path.name for path in (tmp_path / TOO_LONG_FOR_A_SOCKET).iterdir()]
        assert left == [], "KFP leaves each step's source behind"
        [status] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("status ")]
        return status, done.stdout

    return run


def test_it_prints_where_kfp_looks_and_begins_with_its_libraries(probe) -> None:
    status, output = probe(
        "import os, sys",
        "print('torch' in sys.modules, 'mlflow' in sys.modules, os.environ['GIVEN'])",
        "print('run as', sys.modules['__main__'].__spec__.name)",
        "print('and an error', file=sys.stderr)",
        "import atexit; atexit.register(print, 'leaving')",
    )
    assert status == "0"
    assert "True True by KFP" in output
    assert "run as kfp.dsl.executor_main" in output
    assert "and an error" in output
    assert "leaving" in output


def test_a_failure_keeps_its_status_and_its_traceback(probe) -> None:
    assert probe("raise SystemExit(3)")[0] == "3"


def test_an_exception_is_a_failure_with_its_traceback(probe) -> None:
    status, output = probe("raise RuntimeError('no such luck')")
    assert status == "1"
    assert "RuntimeError: no such luck" in output


def test_a_killed_step_is_a_failure(probe) -> None:
    status, _ = probe("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert status == str(-signal.SIGKILL)


def test_it_goes_by_the_name_of_its_step(probe) -> None:
    assert "called probe" in probe("from pathlib import Path; print('called', Path('/proc/self/comm').read_text())")[1]
