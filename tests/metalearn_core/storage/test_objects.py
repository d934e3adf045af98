"""Objects in a bucket, against a real endpoint: whole or not there, written once, and each failure one clear line."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metalearn_core.errors import StorageError, UsageError
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


class _Denying(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def denying() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Denying)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_bucket_of_others_is_named(bucket: str, denying: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", denying)
    objects.client.cache_clear()
    with pytest.raises(StorageError, match=r"s3://theirs/x: access is denied: the credentials do not allow it"):
        Prefix.parse("s3://theirs").read("x")
