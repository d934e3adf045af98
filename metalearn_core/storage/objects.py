"""Objects in a bucket of S3: read, written whole, listed and removed; the only module that knows boto3.

Credentials, region and endpoint come from boto3's ordinary chain (environment, files, the pod's role), AWS_ENDPOINT_URL
included. Each request is tried several times, with growing pauses; AWS_MAX_ATTEMPTS and AWS_RETRY_MODE change that.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from metalearn_core.errors import StorageError, UsageError
from metalearn_core.storage.files import named_errors

SCHEME = "s3://"
ATTEMPTS = 14  # half a minute and more: a store that is started again is back
CONNECT_SECONDS, READ_SECONDS = 10, 60
AT_ONCE = 16
TRIES = 5  # of what boto3 does not repeat: a body that breaks off, a name that others write and remove
_PAUSE_S = 0.2
_ADDRESS = re.compile(r"s3://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9])(?:/(?P<key>.*))?")
_REMOVED_AT_ONCE = 1000
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_UNTOLD = frozenset({"400", *_MISSING})
_TAKEN = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"})
_TOKEN = "the session token is wrong or has expired"
_REASONS = {
    "NoSuchBucket": "there is no such bucket",
    "AccessDenied": "access is denied: the credentials do not allow it",
    "403": "access is denied: the credentials do not allow it",
    "InvalidAccessKeyId": "the access key is not known there",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredToken": _TOKEN,
    "InvalidToken": _TOKEN,
    "400": _TOKEN,  # the answer to a HEAD has no body that would tell
    "PermanentRedirect": "the bucket is in another region: set AWS_DEFAULT_REGION",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_DEFAULT_REGION",
}


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it: its name below the prefix, its size in bytes, and what changes with it."""

    name: str
    size: int
    etag: str


def is_address(location: object) -> bool:
    """Return whether a location is an address of S3, not a path."""
    return str(location).startswith(SCHEME)


@dataclass(frozen=True)
class Prefix:
    """All objects of a bucket whose keys begin with `key` and a slash: what a folder is among files."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, address: str) -> "Prefix":
        """Return the prefix that an address like `s3://bucket/some/place` names.

        Raises:
            UsageError: it is no such address.
        """
        found = _ADDRESS.fullmatch(address)
        bucket = address.removeprefix(SCHEME).partition("/")[0]
        if found is None and bucket and address.startswith(SCHEME) and not 3 <= len(bucket) <= 63:
            raise UsageError(f"address {address!r}: a bucket's name has 3 to 63 characters, got {bucket!r}")
        if found is None or any(part in {".", ".."} for part in (found["key"] or "").split("/")):
            raise UsageError(f"address {address!r}: expected one like s3://bucket/some/place")
        return cls(found["bucket"], "/".join(part for part in (found["key"] or "").split("/") if part))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> "Prefix":
        return Prefix(self.bucket, self._key(name))

    @property
    def parent(self) -> "Prefix":
        """The prefix one level up."""
        return Prefix(self.bucket, self.key.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    def objects(self) -> Iterator[StoredObject]:
        """Yield all objects below, by name; none whose name ends with a slash, which some tools make for folders."""
        below = self._key("")
        with explained(self):
            for page in client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=below):
                for entry in page.get("Contents", ()):
                    if not entry["Key"].endswith("/"):
                        yield StoredObject(entry["Key"].removeprefix(below), entry["Size"], entry["ETag"].strip('"'))

    def check(self) -> None:
        """Raise a StorageError where the bucket is not there, or its objects may not be listed."""
        with explained(self):
            client().list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)

    def find(self, name: str = "") -> StoredObject | None:
        """Return the object `name` below (the one at this very key for an empty name), or None."""
        with explained(self / name):
            try:
                entry = client().head_object(Bucket=self.bucket, Key=self._key(name).rstrip("/"))
            except _client_error() as error:
                if _code(error) in _UNTOLD:
                    self.check()  # an answer without a body does not say whether the bucket is missing, or the object
                if _code(error) not in _MISSING:
                    raise
                return None
        return StoredObject(name, entry["ContentLength"], entry["ETag"].strip('"'))

    def read(self, name: str) -> bytes:
        """Return the content of a small object.

        Raises:
            FileNotFoundError: it is not there.
            StorageError: the bucket cannot be read.
        """
        with explained(self / name):
            try:
                return self._read(name)
            except _client_error() as error:
                if _code(error) in _MISSING:
                    raise FileNotFoundError(2, "no such object", str(self / name)) from None
                raise

    def _read(self, name: str) -> bytes:
        from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

        def body() -> Any:
            return client().get_object(Bucket=self.bucket, Key=self._key(name))["Body"]

        for _ in range(TRIES - 1):
            answered = body()
            with suppress(IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                return bytes(answered.read())
        return bytes(body().read())

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, whatever is there."""
        with explained(self / name):
            client().put_object(Bucket=self.bucket, Key=self._key(name), Body=content)

    def write_file(self, name: str, path: Path) -> None:
        """Write an object of at most 5 GB from a file, on the thread that calls.

        `upload` is quicker, but its threads keep a process from ending while the bucket does not answer.
        """
        with explained(self / name), path.open("rb") as file:
            client().put_object(Bucket=self.bucket, Key=self._key(name), Body=file)

    def write_new(self, name: str, content: bytes) -> bool:
        """Write a small object unless there is one; return whether it has this content now.

        Of two writers with different contents one gets True. A request that was carried out, but whose answer was
        lost, is repeated and then refused: hence the content decides, not the refusal.
        """
        for tried in range(1, TRIES + 1):
            if self._create(name, content):
                return True
            with suppress(FileNotFoundError):  # removed between the two, or another writer is at it
                return self.read(name) == content
            time.sleep(_PAUSE_S * tried)
        raise StorageError(f"{self / name}: others write and remove it at the same time: try again")

    def _create(self, name: str, content: bytes) -> bool:
        """Write an object; False where there is one."""
        with explained(self / name):
            try:
                client().put_object(Bucket=self.bucket, Key=self._key(name), Body=content, IfNoneMatch="*")
            except _client_error() as error:
                if _code(error) not in _TAKEN:
                    raise
                return False
        return True

    def upload(self, files: Mapping[str, Path]) -> None:
        """Upload files by the names that they get; large ones in several parts."""
        with explained(self), _transfers() as transfers:
            pending = [transfers.upload(str(path), self.bucket, self._key(name)) for name, path in files.items()]
            for transfer in pending:
                transfer.result()

    def download(self, files: Mapping[str, Path]) -> None:
        """Download objects by name to files, many at a time and large ones in ranges; a file is whole or not there."""
        for folder in {path.parent for path in files.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        with explained(self), named_errors(next(iter(files.values()), Path())), _transfers() as transfers:
            pending = [transfers.download(self.bucket, self._key(name), str(path)) for name, path in files.items()]
            for transfer in pending:
                transfer.result()

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects by name; one that is not there is no error."""
        keys = [{"Key": self._key(name)} for name in names]
        with explained(self):
            for start in range(0, len(keys), _REMOVED_AT_ONCE):
                batch = keys[start : start + _REMOVED_AT_ONCE]
                answer = client().delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
                for failure in answer.get("Errors", ()):
                    raise StorageError(f"{SCHEME}{self.bucket}/{failure['Key']}: {failure.get('Message', 'stays')}")

    def remove_all(self) -> None:
        """Remove every object below."""
        self.remove([found.name for found in self.objects()])

    def _key(self, name: str) -> str:
        return f"{self.key}/{name}" if self.key else name


@contextmanager
def explained(place: object) -> Iterator[None]:
    """Turn what boto3 raises into one line that names the address and what to do.

    Raises:
        StorageError: the request failed.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

    try:
        yield
    except ClientError as error:
        code = _code(error)
        reason = _REASONS.get(code) or f"{code}: {error.response.get('Error', {}).get('Message') or 'failed'}"
        raise StorageError(f"{place}: {reason}") from None
    except NoCredentialsError:
        raise StorageError(
            f"{place}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give "
            "the pod a role"
        ) from None
    except RetriesExceededError as error:  # of a download whose body broke off each time
        reason = " ".join(str(error.last_exception).split())
        raise StorageError(f"{place}: broke off each time that it was read: {reason}") from None
    except (BotoCoreError, Boto3Error, S3DownloadFailedError) as error:
        raise StorageError(f"{place}: {' '.join(str(error).split())}") from None


@cache
def client() -> Any:
    """Return this process's client."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    retries = {} if "AWS_MAX_ATTEMPTS" in os.environ else {"total_max_attempts": ATTEMPTS}
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"  # type: ignore[assignment]
    config = Config(
        retries=retries,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=2 * AT_ONCE,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"S3: {' '.join(str(error).split())}: set AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, …") from None


@contextmanager
def _transfers() -> Iterator[Any]:
    """Yield what moves files, many at a time; where one fails, the others are given up."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    with create_transfer_manager(client(), TransferConfig(max_concurrency=AT_ONCE)) as manager:
        yield manager


def _client_error() -> type[Exception]:
    from botocore.exceptions import ClientError

    kind: type[Exception] = ClientError
    return kind


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
