"""Boto3 against a real S3 store behind the proxy."""

from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError

from infra.local.stack import Stack
from tests.fault_proxy import FAULTS, FaultProxy

MakeProxy = Callable[..., FaultProxy]


def client(proxy: FaultProxy, attempts: int):
    return boto3.client(
        "s3", endpoint_url=proxy.url, config=Config(retries={"total_max_attempts": attempts, "mode": "standard"})
    )


def place(prefix: str) -> tuple[str, str]:
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    return bucket, key


def test_what_passes_the_proxy_arrives_whole(
    s3_store: Stack, s3_prefix: str, fault_proxy: MakeProxy, tmp_path: Path
) -> None:
    s3 = client(fault_proxy(s3_store.store.endpoint, rate=0), 1)
    bucket, key = place(s3_prefix)
    content = bytes(range(256)) * 80_000
    (tmp_path / "file").write_bytes(content)
    s3.upload_file(str(tmp_path / "file"), bucket, key)  # in several parts
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == content
    assert s3.get_object(Bucket=bucket, Key=key, Range="bytes=255-257")["Body"].read() == b"\xff\x00\x01"
    assert s3.head_object(Bucket=bucket, Key=key)["ContentLength"] == len(content)
    assert [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]] == [key]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_reaches_a_client_that_does_not_retry(
    s3_store: Stack, s3_prefix: str, fault_proxy: MakeProxy, fault: str
) -> None:
    proxy = fault_proxy(s3_store.store.endpoint, rate=1, faults=(fault,))
    bucket, key = place(s3_prefix)
    with pytest.raises((ClientError, HTTPClientError)):
        client(proxy, 1).put_object(Bucket=bucket, Key=key, Body=b"content")
    direct = client(fault_proxy(s3_store.store.endpoint, rate=0), 1)
    there = "Contents" in direct.list_objects_v2(Bucket=bucket, Prefix=key)
    assert there == (fault == "lost")


def test_a_share_of_the_requests_fails_and_the_same_ones_each_time(
    s3_store: Stack, s3_prefix: str, fault_proxy: MakeProxy
) -> None:
    bucket, key = place(s3_prefix)
    seen = []
    for _ in range(2):
        proxy = fault_proxy(s3_store.store.endpoint, rate=0.2, seed=3)
        s3, failed = client(proxy, 1), []
        for number in range(60):
            try:
                s3.put_object(Bucket=bucket, Key=f"{key}/{number}", Body=b"")
            except (ClientError, HTTPClientError):
                failed.append(number)
        assert proxy.requests == 60
        assert proxy.faults.total() == len(failed)
        seen.append(failed)
    assert seen[0] == seen[1]
    assert 3 <= len(seen[0]) <= 25


def test_an_object_is_written_once_where_it_must_not_be_there(s3_store: Stack, s3_prefix: str) -> None:
    bucket, key = place(s3_prefix)
    s3 = boto3.client("s3")
    s3.put_object(Bucket=bucket, Key=key, Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"second", IfNoneMatch="*")
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"first"
