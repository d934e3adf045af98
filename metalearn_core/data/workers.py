"""Decoding on every core: small processes that import next to nothing, and that end with the one that started them."""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeVar

from metalearn_core.errors import MetalearnError

Work = TypeVar("Work")
Result = TypeVar("Result")

_LENGTH_BYTES = 8
_AHEAD = 3


def map_in_order(function: Callable[[Work], Result], work: Iterable[Work], workers: int) -> Generator[Result]:
    """Yield `function` of each piece of work, in order; in this process where `workers` is 1.

    Processes are started with pipes of their own, not by multiprocessing: that would import the caller's main module
    in each of them. A worker reads its work from its standard input and ends when that closes, however its
    parent ended. At most a few pieces a worker are in flight, so memory stays bounded.

    Raises:
        MetalearnError: a worker was killed, or crashed.
    """
    if workers <= 1:
        yield from map(function, work)
        return
    processes = [_start() for _ in range(workers)]
    idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def run(piece: Work) -> Result:
        process = idle.get()
        try:
            return _ask(process, function, piece)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(workers)
    try:
        pending: deque[Future[Result]] = deque()
        for piece in work:
            pending.append(threads.submit(run, piece))
            if len(pending) > _AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for process in processes:
            process.kill()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            _close(process)


def serve() -> None:
    """Do what comes in by standard input until it closes: the whole life of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints must not reach the pipe
    while (message := _receive(incoming)) is not None:
        function, piece = pickle.loads(message)
        try:
            answer: tuple[bool, Any] = (True, function(piece))
        except Exception as error:  # travels to the parent, which raises it
            answer = (False, error)
        try:
            _send(outgoing, answer)
        except BrokenPipeError:
            os._exit(0)


def _start() -> subprocess.Popen[bytes]:
    program = "import sys; from metalearn_core.data.workers import serve; serve()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )


def _ask(process: subprocess.Popen[bytes], function: Callable[[Work], Result], piece: Work) -> Result:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _send(process.stdin, (function, piece))
        message = _receive(process.stdout)
    except OSError:
        message = None
    if message is None:
        raise MetalearnError(f"a decoding worker ended unexpectedly (exit status {process.wait()}): out of memory?")
    done, value = pickle.loads(message)
    if not done:
        raise value
    result: Result = value
    return result


def _send(pipe: BinaryIO | Any, value: Any) -> None:
    message = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(len(message).to_bytes(_LENGTH_BYTES, "little"))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> bytes | None:
    header = pipe.read(_LENGTH_BYTES)
    if len(header) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(header, "little")
    message: bytes = pipe.read(length)
    return message if len(message) == length else None


def _close(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
