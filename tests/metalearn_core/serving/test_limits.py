"""What a request may cost: what is too much is told so, and takes no other's place."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from metalearn_core.serving.limits import Limited, Limits

SCOPE = {"type": "http", "method": "POST", "headers": []}
READ_NOTHING_S = 2.0
SERVER = f"""
import sys
from fastapi import FastAPI, Response
from metalearn_core.serving.server import listen

application = FastAPI()

@application.get("/large")
async def large() -> Response:
    return Response(b"x" * 60_000_000)

listen(application, "127.0.0.1", int(sys.argv[1]), {READ_NOTHING_S})
"""


class Client:
    """One request: its body comes in parts, the last of them when `end` is called."""

    def __init__(self, *parts: bytes) -> None:
        self.left, self._more = list(parts), asyncio.Event()
        self.sent: list[Any] = []

    def end(self) -> None:
        self._more.set()

    async def receive(self) -> Any:
        if self.left:
            return {"type": "http.request", "body": self.left.pop(0), "more_body": True}
        await self._more.wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])


def app_that_waits(release: asyncio.Event) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["more_body"] is False
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    return app


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_bodies_that_never_end_take_no_place_from_whole_ones() -> None:
    async def play() -> list[int]:
        release = asyncio.Event()
        limited = Limited(app_that_waits(release), Limits(waiting=2, seconds=60))
        slow = [Client(b"half") for _ in range(5)]
        started = [asyncio.ensure_future(limited(SCOPE, one.receive, one.send)) for one in slow]
        await settled()
        whole = [Client() for _ in range(3)]
        for one in whole:
            one.end()
            started.append(asyncio.ensure_future(limited(SCOPE, one.receive, one.send)))
        await settled()
        assert whole[2].status == 429, "two are worked on"
        assert json.loads(whole[2].sent[1]["body"])["error"].startswith("too many requests at once")
        release.set()
        for one in slow[:2]:
            one.end()
        await settled()
        for task in started:
            task.cancel()
        return [one.status for one in (*whole[:2], *slow[:2])]

    assert asyncio.run(play()) == [200, 200, 200, 200]


def test_all_bodies_together_take_so_much_memory_and_no_more() -> None:
    async def play() -> None:
        release = asyncio.Event()
        release.set()
        limited = Limited(app_that_waits(release), Limits(body_bytes=50, arriving_bytes=100, seconds=60))
        for _ in range(2):  # what is answered or refused counts no longer
            first, second, third = (Client(b"x" * size) for size in (50, 40, 20))
            waiting = [asyncio.ensure_future(limited(SCOPE, one.receive, one.send)) for one in (first, second)]
            await settled()
            third.end()
            await limited(SCOPE, third.receive, third.send)
            assert third.status == 429
            for one in (first, second):
                one.end()
            await asyncio.gather(*waiting)
            assert (first.status, second.status) == (200, 200)

    asyncio.run(play())


def test_the_largest_body_arrives_whatever_all_together_may_take() -> None:
    async def play() -> int:
        release = asyncio.Event()
        release.set()
        limited = Limited(app_that_waits(release), Limits(body_bytes=200, arriving_bytes=100, seconds=60))
        largest = Client(b"x" * 200)
        largest.end()
        await limited(SCOPE, largest.receive, largest.send)
        return largest.status

    assert asyncio.run(play()) == 200


def test_the_rest_of_a_body_that_is_too_large_is_read_after_the_answer_and_not_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("metalearn_core.serving.limits.DISCARDED_BYTES", 250)

    async def play() -> None:
        release = asyncio.Event()
        release.set()
        limited = Limited(app_that_waits(release), Limits(body_bytes=50, arriving_bytes=50, seconds=60))
        large, endless = (Client(*[b"x" * 100] * parts) for parts in (3, 10))
        refused = asyncio.ensure_future(limited(SCOPE, large.receive, large.send))
        await settled()
        assert large.status == 413
        assert json.loads(large.sent[1]["body"])["error"].startswith("the body is larger than")
        assert [part["more_body"] for part in large.sent[1:]] == [True], "the client still sends"
        other = Client(b"x" * 50)
        other.end()
        await limited(SCOPE, other.receive, other.send)
        assert other.status == 200
        large.end()
        await refused
        assert not large.sent[-1].get("more_body")
        await limited(SCOPE, endless.receive, endless.send)
        assert endless.status == 413
        assert len(endless.left) == 6, "one part was too much, and three were discarded"

    asyncio.run(play())


@pytest.fixture
def server() -> Iterator[tuple[psutil.Process, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
            else:
                break
        yield psutil.Process(process.pid), port
    finally:
        process.kill()
        process.wait()


def open_connections(process: psutil.Process) -> int:
    return sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections())


def test_an_answer_that_nobody_reads_is_let_go(server: tuple[psutil.Process, int]) -> None:
    process, port = server
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        end = time.monotonic() + 60 * READ_NOTHING_S
        while open_connections(process):
            assert time.monotonic() < end
            time.sleep(0.1)


def test_an_answer_that_is_read_slowly_arrives_whole(server: tuple[psutil.Process, int]) -> None:
    _, port = server
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        came, started = 0, time.monotonic()
        while came < 60_000_000:
            part = connection.recv(2**18)
            assert part
            came += len(part)
            time.sleep(0.05 if time.monotonic() - started < 2 * READ_NOTHING_S else 0)
    assert time.monotonic() - started >= 2 * READ_NOTHING_S
