"""The S3 store's accounts: who may do what with which bucket, as SeaweedFS reads it; standard library alone."""

import json
import secrets
from dataclasses import dataclass

ARTIFACTS_BUCKET, PIPELINE_BUCKET = "mlflow", "metalearn"
_USE = ("Read", "Write", "List", "Tagging")


@dataclass(frozen=True)
class Key:
    """What an account of the S3 store signs its requests with."""

    access: str
    secret: str


def new_key() -> Key:
    """Return a key that nobody has."""
    return Key(secrets.token_hex(10).upper(), secrets.token_urlsafe(30))


def identities(owner: Key, artifacts: Key, pipelines: Key) -> str:
    """Return the accounts in JSON: the owner's, and one for each bucket with rights on that bucket alone."""
    accounts = (
        ("owner", owner, ["Admin", *_USE]),
        ("mlflow", artifacts, [f"{action}:{ARTIFACTS_BUCKET}" for action in _USE]),
        ("pipeline", pipelines, [f"{action}:{PIPELINE_BUCKET}" for action in _USE]),
    )
    listed = [
        {"name": name, "credentials": [{"accessKey": key.access, "secretKey": key.secret}], "actions": actions}
        for name, key, actions in accounts
    ]
    return json.dumps({"identities": listed})
