"""Train one learner in several processes on this machine, started and watched by `torchrun`."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from metalearn_core.errors import MetalearnError, UsageError, one_line
from metalearn_core.events import is_logged
from metalearn_core.lifetime import OWNER_VARIABLE, end_with_owner, owner_value
from metalearn_core.resources import available_cores
from metalearn_core.steps.requests import TrainingOrder
from metalearn_core.storage import read_json, write_json
from metalearn_core.training.termination import TrainingStoppedError, end_process, sigterm_flag

if TYPE_CHECKING:
    from metalearn_core.training.world import World

_USAGE, _ERROR, _BUG, _STOPPED, _LOST = "usage: ", "error: ", "bug: ", "stopped: ", "lost: "
_GOES_ON = "the same command goes on from its last checkpoint"
_POLL_S = 0.1
_GRACE_S = 40  # torchrun's own is 30 seconds
_LAST_LINES = 50
_GONE = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: -(\d+) \(pid: (\d+)\)")  # torchrun's words
_ENDED_BY_TORCHRUN = re.compile(r"Sending process (\d+) closing signal")


def train_in_processes(order: TrainingOrder) -> dict[str, Any]:
    """Train in as many processes as ordered, and return the record of the training.

    Where events are lines on standard error, so is all that the processes write; elsewhere only the end of it, where
    they fail and none of them knows why.

    Raises:
        UsageError: a process found that something is asked for in a wrong way.
        TrainingStoppedError: SIGTERM asked this process to end, or one of them; they have written a checkpoint.
        MetalearnError: a process failed, or was killed; then all of them end.
    """
    with tempfile.TemporaryDirectory(prefix="metalearn-") as scratch:
        request, record, log = (Path(scratch) / name for name in ("request.json", "record.json", "log.txt"))
        processes = order.resources.processes
        write_json(request, order.model_dump(mode="json"))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m", "metalearn_core.steps.train_processes", str(request), str(record)]
        threads = str(max(1, available_cores() // processes))
        environment = {**os.environ, OWNER_VARIABLE: owner_value(), "OMP_NUM_THREADS": threads}
        with log.open("wb") as output, log.open("rb") as unseen, sigterm_flag() as stop:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            try:
                while process.poll() is None and not stop.wait(_POLL_S):
                    if is_logged():
                        _pass_on(unseen)
            finally:
                _end(process)
            said = log.read_text(errors="replace")
            failed = process.returncode != 0 or not record.exists()
            unexplained = failed and not stop.is_set() and not _reasons(said, _USAGE, _ERROR)
            if is_logged() or unexplained:
                _pass_on(unseen)
        if stop.is_set():
            raise TrainingStoppedError(str(_failure(said, processes)))
        if failed:
            raise _failure(said, processes)
        return dict(read_json(record, "record of the training"))


def _pass_on(unseen: BinaryIO) -> None:
    """Write what is new in the processes' log on standard error; of much, the end."""
    lines = unseen.read().decode(errors="replace").splitlines(keepends=True)
    sys.stderr.write("".join(lines[-_LAST_LINES:]))
    sys.stderr.flush()


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End torchrun, if it still runs: it has its processes write a checkpoint, and waits for them."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()  # its processes end with their owner
        process.wait()


def _failure(log: str, processes: int) -> MetalearnError:
    """Return why processes ended early, as one of them knew; else as a signal tells, or what one raised.

    Where one is gone, torchrun asks the others to end: that they were asked to is the reason where there is no other.
    """
    if wrong := _reasons(log, _USAGE):
        return UsageError(wrong[0])
    if said := [*_reasons(log, _ERROR), *_killed(log, processes), *_reasons(log, _BUG)]:
        return MetalearnError(said[0])
    if stopped := _reasons(log, _STOPPED):
        return TrainingStoppedError(stopped[0])
    return MetalearnError(f"a training process ended early: {_GOES_ON}")


def _reasons(log: str, *kinds: str) -> list[str]:
    return [line.removeprefix(kind) for line in log.splitlines() for kind in kinds if line.startswith(kind)]


def _killed(log: str, processes: int) -> list[str]:
    """Return which processes were ended by a signal that was not torchrun's."""
    ended = set(_ENDED_BY_TORCHRUN.findall(log))
    return [
        f"process {int(rank) + 1} of {processes} was killed by {_signal_name(int(number))}: {_GOES_ON}"
        for rank, number, process in _GONE.findall(log)
        if process not in ended
    ]


def _signal_name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} (out of memory?)" if number == signal.SIGKILL else name


def take_part(order: TrainingOrder, done: Callable[[dict[str, Any]], None], failed: Callable[[Exception], None]) -> int:
    """Train as one of the processes that torchrun started, and return this one's exit status.

    Args:
        order: what all of them train.
        done: is given the record of the training, in the first process.
        failed: is given what a process raised that cannot go on; see `knows_why`.
    """
    from metalearn_core.steps.training import train_here
    from metalearn_core.training.world import joined

    def trained(world: "World") -> int:
        try:
            record = train_here(order, world)
            if world.leads:
                done(record)
        except Exception as error:
            if not knows_why(error):
                traceback.print_exc()
            failed(error)
            return 1
        world.wait()
        return 0

    try:
        with joined(order.resources.device) as world:
            return trained(world)
    except MetalearnError as error:
        failed(error)
        return 1


def knows_why(error: Exception) -> bool:
    """Return whether an error says why a process cannot go on; one that has only lost the others does not."""
    from metalearn_core.training.world import PeerLostError

    return isinstance(error, (MetalearnError, OSError)) and not isinstance(error, PeerLostError)


def _kind(error: Exception) -> str:
    """Return what the line of an error begins with in the log."""
    from metalearn_core.training.world import PeerLostError

    kinds: dict[type[Exception], str] = {
        PeerLostError: _LOST,
        TrainingStoppedError: _STOPPED,
        UsageError: _USAGE,
        MetalearnError: _ERROR,
        OSError: _ERROR,
    }
    return next((line for kind, line in kinds.items() if isinstance(error, kind)), _BUG)


def main() -> int:
    """Train as one of the processes: `… ORDER RECORD`; the first one writes the record."""
    end_with_owner()
    order = TrainingOrder.model_validate(read_json(Path(sys.argv[1]), "order"))

    def failed(error: Exception) -> None:
        sys.stderr.write(f"{_kind(error)}{one_line(error)}\n")

    return take_part(order, lambda record: write_json(Path(sys.argv[2]), record), failed)


if __name__ == "__main__":
    end_process(main())
