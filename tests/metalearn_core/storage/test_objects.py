"""Objects in a bucket, against a real endpoint: whole or not there, written once, and each failure one clear line."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metalearn_core.errors import StorageError, UsageError, one_line
from metalearn_core.storage import objects
from metalearn_core.storage.objects import Prefix


@pytest.mark.parametrize(
    ("address", "bucket", "key"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://my.bucket-1/a//b/", "my.bucket-1", "a/b"),
    ],
)
def test_an_address_is_a_bucket_and_a_key(address: str, bucket: str, key: str) -> None:
    assert Prefix.parse(address) == Prefix(bucket, key)


@pytest.mark.parametrize("address", ["s3://", "s3:///key", "s3://b", "s3://bucket/../x", "s3:/bucket", "s3://bu cket"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"expected one like s3://bucket/some/place|has 3 to 63 characters"):
        Prefix.parse(address)


def test_objects_are_read_as_they_were_written_and_listed_by_name(bucket: str) -> None:
    prefix = Prefix.parse(f"{bucket}/place")
    prefix.write("b/two", b"2")
    prefix.write("a one", b"1")
    Prefix.parse(f"{bucket}/placed").write("no", b"part of it")
    assert [(found.name, found.size) for found in prefix.objects()] == [("a one", 1), ("b/two", 1)]
    assert prefix.read("b/two") == b"2"
    with pytest.raises(FileNotFoundError):
        prefix.read("c")
    prefix.remove(["b/two", "never there"])
    assert prefix.find("b/two") is None
    prefix.remove_all()
    assert list(prefix.objects()) == []


def test_of_two_writers_one_is_first_and_the_same_content_is_no_conflict(bucket: str) -> None:
    prefix = Prefix.parse(bucket)
    assert prefix.write_new("marker", b"mine")
    assert not prefix.write_new("marker", b"yours")
    assert prefix.write_new("marker", b"mine")
    assert prefix.read("marker") == b"mine"


def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(bucket: str, tmp_path: Path) -> None:
    prefix = Prefix.parse(bucket)
    content = bytes(range(256)) * (20 * 4096)  # 20 MiB: three parts
    (tmp_path / "large").write_bytes(content)
    prefix.upload({"x/large": tmp_path / "large"})
    there = prefix.find("x/large")
    assert there is not None
    assert there.etag.endswith("-3")
    prefix.download({"x/large": tmp_path / "down" / "large"})
    assert (tmp_path / "down" / "large").read_bytes() == content
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["large"]


def test_a_download_that_fails_leaves_no_part_of_a_file(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Prefix.parse(bucket).download({"not there": tmp_path / "file"})
    assert list(tmp_path.glob("file*")) == []


def test_a_bucket_that_is_not_there_is_named(bucket: str) -> None:
    with pytest.raises(StorageError, match=r"^s3://no-such-bucket-of-ours: there is no such bucket$"):
        list(Prefix.parse("s3://no-such-bucket-of-ours").objects())


def test_without_credentials_it_says_what_to_set(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    objects.client.cache_clear()
    with pytest.raises(StorageError, match="there are no credentials: set AWS_ACCESS_KEY_ID"):
        list(Prefix.parse(bucket).objects())


def test_an_endpoint_that_does_not_answer_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        objects.client.cache_clear()
        with pytest.raises(StorageError, match=r"s3://.*Could not connect to the endpoint URL"):
            list(Prefix.parse(bucket).objects())


class _Store(BaseHTTPRequestHandler):
    """A store that gives one kind of answer to each kind of request; `requests` are their kinds."""

    requests: list[str]

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        """Answer with a body, of another length than is announced where one is given."""
        self.requests.append(self.command)
        self.send_response(status)
        self.send_header("ETag", '"etag"')
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        """Answer with an error."""
        self.answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type[_Store]], list[str]]]:
    """Serve requests by a handler instead of the store; return the list that their kinds are appended to."""
    servers: list[ThreadingHTTPServer] = []

    def start(handler: type[_Store]) -> list[str]:
        handler.requests = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        objects.client.cache_clear()
        return handler.requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[[type[_Store]], list[str]]


def test_a_bucket_of_others_is_named(serve: Serve) -> None:
    class Denying(_Store):
        def do_GET(self) -> None:
            self.refuse(403, "AccessDenied")

    serve(Denying)
    with pytest.raises(StorageError, match=r"s3://theirs/x: access is denied: the credentials do not allow it"):
        Prefix.parse("s3://theirs").read("x")


@pytest.mark.parametrize("code", ["InvalidToken", "ExpiredToken"])
def test_a_session_token_that_is_not_taken_is_said_whatever_is_asked(serve: Serve, code: str) -> None:
    class Refusing(_Store):
        def do_GET(self) -> None:
            self.refuse(400, code)

        do_HEAD = do_GET  # noqa: N815

    serve(Refusing)
    for ask in (lambda: Prefix.parse("s3://theirs").read("x"), lambda: Prefix.parse("s3://theirs").find("x")):
        with pytest.raises(StorageError, match="the session token is wrong or has expired"):
            ask()


def test_a_body_that_breaks_off_is_read_again(serve: Serve) -> None:
    class Breaking(_Store):
        def do_GET(self) -> None:
            whole = len(self.requests) >= 2
            self.answer(200, b"content" if whole else b"con", 7)

    requests = serve(Breaking)
    assert Prefix.parse("s3://theirs").read("x") == b"content"
    assert requests == ["GET"] * 3


def test_a_download_that_breaks_off_each_time_is_one_line(serve: Serve, tmp_path: Path) -> None:
    class Breaking(_Store):
        def do_HEAD(self) -> None:
            self.answer(200, b"", 7)

        def do_GET(self) -> None:
            self.answer(200, b"con", 7)

    serve(Breaking)
    with pytest.raises(StorageError, match="s3://theirs: broke off each time that it was read") as caught:
        Prefix.parse("s3://theirs").download({"x": tmp_path / "x"})
    assert "\n" not in one_line(caught.value)
    assert list(tmp_path.glob("x*")) == []


def test_an_object_that_is_refused_as_there_and_is_not_there_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Conflicting(_Store):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.refuse(409, "ConditionalRequestConflict")

        def do_GET(self) -> None:
            self.refuse(404, "NoSuchKey")

    monkeypatch.setattr(objects, "TRIES", 2)
    requests = serve(Conflicting)
    with pytest.raises(StorageError, match="s3://theirs/x: others write and remove it at the same time: try again"):
        Prefix.parse("s3://theirs").write_new("x", b"mine")
    assert requests == ["PUT", "GET"] * objects.TRIES
