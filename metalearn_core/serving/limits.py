"""What a request may cost before it is looked at: bytes, seconds to arrive, and how many wait at once."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
        body_bytes: of a request's body.
        seconds: for a request's body, and for its head, to arrive.
        waiting: requests that are worked on or wait for it, at most; further ones are told to come again.
        arriving_bytes: of all bodies that have come, whole or in part; above it, too, requests are told to come again.
        classifier_bytes: of adapted classifiers that are kept.
    """

    body_bytes: int = 16 * 2**20
    seconds: float = 10.0
    waiting: int = 64
    arriving_bytes: int = 256 * 2**20
    classifier_bytes: int = 256 * 2**20


class Limited:
    """ASGI middleware that reads each body whole, within the limits, before the application sees the request.

    Too large is a status 413, too slow 408, too many 429; a client that goes away in the middle gets nothing.
    """

    def __init__(self, app: Application, limits: Limits) -> None:
        self._app, self._limits, self._there, self._held = app, limits, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        body, length = bytearray(), 0
        try:
            arrived = await self._arrived(body, scope, receive, send)
            length = len(body)
            if arrived:
                await self._work(body, scope, receive, send)
        finally:
            self._held -= max(length, len(body))

    async def _work(self, body: bytearray, scope: Scope, receive: Receive, send: Send) -> None:
        if self._there >= self._limits.waiting:
            await refuse_for_now(send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        body.clear()  # one copy is enough while it waits

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        self._there += 1
        try:
            await self._app(scope, replay, send)
        finally:
            self._there -= 1

    async def _arrived(self, body: bytearray, scope: Scope, receive: Receive, send: Send) -> bool:
        """Fill the body; return False where it was refused, or the client went away."""
        most = self._limits.body_bytes
        too_large = f"the body is larger than {most / 2**20:g} MB: send fewer or smaller examples"
        if _length(scope) > most:
            await refuse(send, 413, too_large)
            return False
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
                        await refuse(send, 413, too_large)
                        return False
                    if self._held > self._limits.arriving_bytes:
                        await refuse_for_now(send)
                        return False
        except TimeoutError:
            await refuse(send, 408, f"the body did not arrive within {self._limits.seconds:g} seconds")
            return False
        return True


async def refuse_for_now(send: Send) -> None:
    """Answer that there is too much to do."""
    await refuse(send, 429, "too many requests at once: try again in a moment", {"retry-after": "1"})


async def refuse(send: Send, status: int, error: str, headers: dict[str, str] | None = None) -> None:
    """Answer with a status and one line, and end the connection: what is left of the request is not read."""
    body = json.dumps({"error": error}).encode()
    named = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    raw = [(name.encode(), value.encode()) for name, value in {**named, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _length(scope: Scope) -> int:
    values = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(values[0]) if values and values[0].isdigit() else 0
