"""What a stack is made of once and keeps: its ports and its credentials, in files that only their owner can read."""

import os
import secrets
import socket
from contextlib import ExitStack
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.accounts import Key, new_key
from metalearn_core.errors import MetalearnError

_NAME = "settings.json"
_PORTS = 10
_LARGEST_PORT = 32767  # below those that systems give to outgoing connections


class Settings(BaseModel):
    """Ports and credentials of a stack.

    Attributes:
        database_port: of PostgreSQL.
        tracking_port: of the MLflow server.
        s3_port: of the S3 endpoint.
        store_ports: of the S3 store's other parts, which talk to each other.
        superuser_password: of PostgreSQL's account `postgres`, which makes the database.
        database_password: of the account that owns MLflow's database.
        admin_password: of MLflow's account `admin`, which makes other accounts.
        pipeline_password: of MLflow's account `pipeline`, which runs pipelines.
        session_key: signs what MLflow's page sends back.
        owner_key: makes the buckets.
        artifacts_key: the MLflow server's, for the bucket of artifacts alone.
        pipeline_key: for the bucket of the pipelines alone.
    """

    model_config = ConfigDict(frozen=True)

    database_port: int
    tracking_port: int
    s3_port: int
    store_ports: tuple[int, ...]
    superuser_password: str
    database_password: str
    admin_password: str
    pipeline_password: str
    session_key: str
    owner_key: Key
    artifacts_key: Key
    pipeline_key: Key


def open_settings(folder: Path) -> Settings:
    """Return the settings of the stack in a folder, made where there are none.

    Raises:
        MetalearnError: the file is there, and is not one of settings.
    """
    file = folder / _NAME
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        write_private(file, _new().model_dump_json(indent=2))
    try:
        return Settings.model_validate_json(file.read_text())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise MetalearnError(f"{file}: {where}: {first['msg'].lower()}; remove the folder to begin anew") from None


def has_settings(folder: Path) -> bool:
    """Return whether a stack was made in a folder."""
    return (folder / _NAME).exists()


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(text)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _new() -> Settings:
    database, tracking, s3, *others = _free_ports()
    passwords = ("superuser_password", "database_password", "admin_password", "pipeline_password", "session_key")
    keys = ("owner_key", "artifacts_key", "pipeline_key")
    return Settings(
        database_port=database,
        tracking_port=tracking,
        s3_port=s3,
        store_ports=tuple(others),
        **{name: secrets.token_urlsafe(24) for name in passwords},
        **{name: new_key() for name in keys},
    )


def _free_ports() -> list[int]:
    """Return ports that nothing listens at now, all of them different."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < _PORTS:
            port = 10_000 + secrets.randbelow(_LARGEST_PORT - 10_000)
            opened = held.enter_context(socket.socket())
            try:
                opened.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found
