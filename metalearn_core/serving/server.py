"""Runs the application on a port, and ends connections whose request never arrives or whose answer nobody reads."""

import asyncio
import os
import signal
import socket
import threading
import time
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

KEEP_ALIVE_SECONDS = 30
GRACE_SECONDS = 10
_ANSWERED = 0.8  # of the grace: what is given up then is still told so


def listen(application: FastAPI, host: str, port: int, head_seconds: float, grace_seconds: int = GRACE_SECONDS) -> None:
    """Serve until SIGINT or SIGTERM; requests that are under way are answered first, in so far as the grace suffices.

    In the main thread this is the last thing that a process does: where a thread still works after the grace, on what
    nobody waits for, the process ends at once, with exit status 0.

    Args:
        application: made by `make_application`.
        host: the address to listen on.
        port: likewise.
        head_seconds: for the head of a request to arrive.
        grace_seconds: for requests that are under way at the end.
    """

    class Protocol(_Patient):
        seconds = head_seconds

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            application.state.ends_at = time.monotonic() + _ANSWERED * grace_seconds
            await super().shutdown(sockets)

    config = uvicorn.Config(
        application,
        host=host,
        port=port,
        http=Protocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=grace_seconds,
    )
    if threading.current_thread() is not threading.main_thread():
        Server(config).run()
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn handles them, and raises them again at its end
        signal.signal(number, lambda *_: None)
    Server(config).run()
    if _at_work():
        os._exit(0)  # Python would wait for the thread, and has no means to end it


def _at_work() -> bool:
    """Return whether there is a thread that Python would wait for, though it was told to end a moment ago."""
    others = [thread for thread in threading.enumerate() if not thread.daemon]
    others.remove(threading.main_thread())
    for thread in others:
        thread.join(0.5)
    return any(thread.is_alive() for thread in others)


class _Patient(H11Protocol):
    """HTTP/1.1 that waits for the head of a request, and for an answer to be read, but not for ever."""

    seconds: float
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._deadline is None:
            self._deadline = self.loop.call_later(self.seconds, self._give_up)
        elif not waiting:
            self._forget()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def _forget(self, *_: Any) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _await_reader(self) -> None:
        """Look again whether the client has read any of its answer, where it has not read all."""
        if self._unread is not None:
            self._unread.cancel()
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(self.seconds, self._check_reader, left) if left else None

    def _check_reader(self, left_before: int) -> None:
        if self.transport.get_write_buffer_size() < left_before:
            self._await_reader()
        else:
            self.transport.abort()

    def _give_up(self) -> None:
        self._deadline = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
