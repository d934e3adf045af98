"""Make the credentials of the laptop overlay, once: files that git leaves alone and only you can read.

python3 -m infra.kubernetes.make_secrets [FOLDER OF THE OVERLAY]
"""

import os
import secrets
import sys
from pathlib import Path

from infra.accounts import Key, identities, new_key

OVERLAY = Path(__file__).parent / "overlays" / "laptop"


def main() -> int:
    """Make them below the folder that is given, or the repository's; return 0 where they were made."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else OVERLAY
    present = [folder / part / "secrets" for part in ("server", "pipelines")]
    if any(place.exists() for place in present):
        sys.stderr.write(f"error: {folder} has secrets already; remove {present[0]} and {present[1]} to make others\n")
        return 1
    make_secrets(folder)
    return 0


def make_secrets(folder: Path) -> None:
    """Write the files that an overlay makes its secrets of, readable by their owner alone."""
    server, pipelines = folder / "server" / "secrets", folder / "pipelines" / "secrets"
    database = secrets.token_urlsafe(24)
    artifacts, storage = new_key(), new_key()
    _write(
        server / "database.env", {"PGHOST": "postgres", "PGPORT": "5432", "PGUSER": "mlflow", "PGPASSWORD": database}
    )
    _write(server / "postgres.env", {"POSTGRES_USER": "mlflow", "POSTGRES_PASSWORD": database})
    _write(server / "artifacts.env", _variables(artifacts))
    admin = {
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(24),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }
    _write(server / "admin.env", admin)
    _private(server / "identities.json", identities(new_key(), artifacts, storage))
    _write(pipelines / "storage.env", _variables(storage))
    tracking = {"MLFLOW_TRACKING_USERNAME": "pipeline", "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(24)}
    _write(pipelines / "tracking.env", tracking)


def _variables(key: Key) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": key.access, "AWS_SECRET_ACCESS_KEY": key.secret}


def _write(file: Path, values: dict[str, str]) -> None:
    _private(file, "".join(f"{name}={value}\n" for name, value in values.items()))


def _private(file: Path, text: str) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)


if __name__ == "__main__":
    sys.exit(main())
