"""What a request may cost before it is looked at: bytes, seconds to arrive, and how many wait at once."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

DISCARDED_BYTES = 64 * 2**20
"""Of a body that is refused on its way, at most: many clients read the answer only when they have sent all of it."""


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        body_bytes: of a request's body.
        seconds: for a request's body, and for its head, to arrive.
        waiting: requests that are worked on or wait for it, at most; further ones are told to come again.
        arriving_bytes: of all bodies that have come, whole or in part; above it, and above two of the largest bodies,
            requests are told to come again, too.
        work_seconds: for the answer to a request of several episodes.
        classifier_bytes: of adapted classifiers that are kept.
    """

    body_bytes: int = 16 * 2**20
    seconds: float = 10.0
    waiting: int = 64
    arriving_bytes: int = 256 * 2**20
    work_seconds: float = 60.0
    classifier_bytes: int = 256 * 2**20


class Limited:
    """ASGI middleware that reads each body whole, within the limits, before the application sees the request.

    Too large is a status 413, too slow 408, too many 429; a client that goes away in the middle gets nothing.
    """

    def __init__(self, app: Application, limits: Limits) -> None:
        self._app, self._limits, self._there, self._held = app, limits, 0, 0
        self._most_held = max(limits.arriving_bytes, 2 * limits.body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        try:
            await self._handle(scope, receive, send)
        except _RefusedError as refused:
            await self._refuse(refused, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, length = bytearray(), 0
        try:
            if await self._arrived(body, scope, receive):
                length = len(body)
                await self._work(body, scope, receive, send)
        finally:
            self._held -= max(length, len(body))
            body.clear()

    async def _work(self, body: bytearray, scope: Scope, receive: Receive, send: Send) -> None:
        if self._there >= self._limits.waiting:
            raise _BusyError(unread=False)
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        body.clear()  # one copy is enough while it waits

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        self._there += 1
        try:
            await self._app(scope, replay, send)
        finally:
            self._there -= 1

    async def _arrived(self, body: bytearray, scope: Scope, receive: Receive) -> bool:
        """Fill the body; return False where the client went away."""
        most = self._limits.body_bytes
        too_large = f"the body is larger than {most / 2**20:g} MB: send fewer or smaller examples"
        if _length(scope) > most:
            raise _RefusedError(413, too_large, unread=True)
        try:
            async with asyncio.timeout(self._limits.seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    came = message.get("body", b"")
                    body += came
                    self._held += len(came)
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise _RefusedError(413, too_large, unread=more)
                    if self._held > self._most_held:
                        raise _BusyError(unread=more)
        except TimeoutError:
            late = f"the body did not arrive within {self._limits.seconds:g} seconds"
            raise _RefusedError(408, late, unread=True) from None
        return True

    async def _refuse(self, refused: "_RefusedError", receive: Receive, send: Send) -> None:
        """Answer with a status and one line, and end the connection."""
        body = json.dumps({"error": str(refused)}).encode()
        named = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        raw = [(name.encode(), value.encode()) for name, value in {**named, **refused.headers}.items()]
        await send({"type": "http.response.start", "status": refused.status, "headers": raw})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if refused.unread:
            await self._discard(receive)
        await send({"type": "http.response.body", "body": b""})

    async def _discard(self, receive: Receive) -> None:
        """Read on, and keep nothing: a connection that is closed before all is read may lose the answer on its way."""
        left = DISCARDED_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.seconds):
                while left > 0:
                    message = await receive()
                    if not message.get("more_body", False):
                        return
                    left -= len(message["body"])


class _RefusedError(Exception):
    """A request is refused with a status and one line; `unread`: its body is not all there."""

    headers: Mapping[str, str] = {}

    def __init__(self, status: int, error: str, *, unread: bool) -> None:
        super().__init__(error)
        self.status, self.unread = status, unread


class _BusyError(_RefusedError):
    """There is too much to do."""

    headers: Mapping[str, str] = {"retry-after": "1"}

    def __init__(self, *, unread: bool) -> None:
        super().__init__(429, "too many requests at once: try again in a moment", unread=unread)


def _length(scope: Scope) -> int:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() else 0
