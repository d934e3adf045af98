"""Assemble the verbs, and turn every expected error into one line and an exit status."""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

import typer
from typer.exceptions import Abort, TyperException

from metalearn_core.errors import MetalearnError, one_line
from pipelines.command_line import catalogue, datasets, machine, matrix, models, registered, runs, serve, submit, using

DEBUG_VARIABLE = "METALEARN_DEBUG"
SPIN_VARIABLE, SPIN_COUNT = "GOMP_SPINCOUNT", "4000"  # the image sets it too
_INTERRUPTED, _TERMINATED = 130, 143

app = typer.Typer(
    name="metalearn",
    help="Few-shot meta-learning: from labelled data to a promoted model, here and on Kubeflow.",
    epilog="First steps:  metalearn run  ·  metalearn run path/to/images  ·  metalearn ui",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verbs in (runs, submit, catalogue, datasets, models, matrix, using, registered, serve, machine):
    verbs.add_to(app)


def main() -> None:
    """Run one verb: exit status 0 for done, 1 for failed, 2 for wrong use; an expected error is one line."""
    _check_surroundings()
    _share_cores()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        message = error.format_message()
        sys.exit(_report(message, error.exit_code) if message else error.exit_code)  # without one, help was shown
    except (Abort, KeyboardInterrupt):
        sys.exit(_report("interrupted: the same command goes on where this one stopped", _INTERRUPTED))
    except _TerminatedError:
        sys.exit(_report("terminated: the same command goes on where this one stopped", _TERMINATED))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        expected = isinstance(error, (MetalearnError, OSError))
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        hint = "" if expected else f" (this is a bug; {DEBUG_VARIABLE}=1 shows where)"
        status = _report(one_line(error) + hint, getattr(error, "exit_status", 1))
        if status == _TERMINATED:
            _end_training(error, status)
        sys.exit(status)
    sys.exit(status if isinstance(status, int) else 0)


def _check_surroundings() -> None:
    """End with one line where not even the libraries could be loaded, or nobody would see an answer."""
    if sys.stdout is None:
        sys.exit(_report("standard output is closed: there is nowhere to answer", 1))
    try:
        Path.cwd()
    except FileNotFoundError:
        sys.exit(_report("the current directory was deleted: change to another one", 1))


def _share_cores() -> None:
    """Have threads that wait for others of their team give up their core soon, unless the environment says how long.

    By default GNU's OpenMP, which torch brings, lets them spin for milliseconds. Alone that is a few percent faster;
    where another process wants the cores, the team waits for a thread that waits for a core: two trainings at once on
    two cores then make a sixth of the steps that they make with this.
    """
    if not {"OMP_WAIT_POLICY", SPIN_VARIABLE} & os.environ.keys():
        os.environ[SPIN_VARIABLE] = SPIN_COUNT


class _TerminatedError(BaseException):
    """SIGTERM arrived: what is half-written is removed on the way out, as after Ctrl-C."""


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _TerminatedError


def _end_training(error: Exception, status: int) -> None:
    """End the process at once, where a training that had to stop is what it did."""
    from metalearn_core.training.termination import TrainingStoppedError, end_process

    if isinstance(error, TrainingStoppedError):
        end_process(status)


def _report(text: str, status: int) -> int:
    sys.stderr.write(f"error: {' '.join(text.split())}\n")
    return status
