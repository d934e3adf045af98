"""A proxy before an HTTP server that lets a share of the requests fail, the same ones each time."""

import http.client
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

FAULTS = ("500", "503", "reset", "lost")
"""Answers of 500 and 503; a reset before the request is passed on; one after it was, so that its answer is lost."""
_OF_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}


class FaultProxy:
    """Passes requests on to a server, and lets some fail. Its `url` stands for the server's.

    Args:
        upstream: address of the server, http://HOST:PORT.
        rate: share of the requests that fail; may be set at any time.
        seed: two proxies with the same seed let the same requests fail, by their number.
        faults: the ways to fail, each as likely as the others.
        own_host: name the server by its own address, where it takes no other; a signed request must keep the client's.
    """

    def __init__(
        self,
        upstream: str,
        rate: float = 0.05,
        seed: int = 0,
        faults: tuple[str, ...] = FAULTS,
        own_host: bool = False,
    ) -> None:
        self.rate, self.requests, self.faults = rate, 0, Counter[str]()
        self._upstream, self._own_host = urlsplit(upstream).netloc, own_host
        self._random, self._kinds, self._drawing = Random(seed), faults, threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), name="fault proxy", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _draw(self) -> str | None:
        with self._drawing:
            self.requests += 1
            fails, fault = self._random.random() < self.rate, self._random.choice(self._kinds)
            self.faults[fault] += fails
            return fault if fails else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = _body(self)
                fault = proxy._draw()
                if fault == "reset":
                    return _reset(self)
                if fault in {"500", "503"}:
                    return _answer(self, int(fault), [], b"")
                try:
                    status, headers, content = _forward(proxy._upstream, proxy._own_host, self, body)
                except OSError:  # the server is away
                    return _reset(self)
                return _reset(self) if fault == "lost" else _answer(self, status, headers, content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _handle  # noqa: N815

            def log_message(self, format: str, *arguments: Any) -> None:
                """Say nothing."""

        return Handler


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    parts = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        parts.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():
        continue
    return b"".join(parts)


def _forward(
    upstream: str, own_host: bool, request: BaseHTTPRequestHandler, body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(upstream, timeout=60)
    try:
        connection.putrequest(request.command, request.path, skip_host=not own_host, skip_accept_encoding=True)
        left_out = {*_OF_CONNECTION, "content-length", "expect", *(["host"] if own_host else [])}
        for name, value in request.headers.items():
            if name.lower() not in left_out:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def _answer(request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    request.send_response_only(status)
    head = request.command == "HEAD"
    for name, value in headers:
        if name.lower() not in _OF_CONNECTION and (head or name.lower() != "content-length"):
            request.send_header(name, value)
    if not head and status != 204:
        request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if not head:
        request.wfile.write(content)


def _reset(request: BaseHTTPRequestHandler) -> None:
    """Cut the connection, so that the client's next read or write fails."""
    request.close_connection = True
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.shutdown(socket.SHUT_RD)
    request.connection.close()
