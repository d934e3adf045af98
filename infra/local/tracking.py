"""The MLflow server: runs and registry in PostgreSQL, artifacts in S3 through the server, a password for everyone."""

import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from infra.accounts import ARTIFACTS_BUCKET
from infra.local.database import DATABASE, Database
from infra.local.object_store import ObjectStore
from infra.local.process import Process
from infra.local.settings import Settings
from metalearn_core.errors import MetalearnError

ADMIN, ACCOUNT = "admin", "pipeline"
_REFUSED = (401, 403)
_AUTHENTICATION = Path(__file__).parent.parent / "kubernetes" / "server" / "basic_auth.ini"  # the cluster's own


class TrackingServer:
    """The MLflow server of a stack, with an account `pipeline` beside the administrator's."""

    name = "mlflow"

    def __init__(self, folder: Path, settings: Settings, database: Database, store: ObjectStore) -> None:
        self._settings = settings
        self._database, self._store = database, store
        self.process = Process(self.name, folder)

    @property
    def uri(self) -> str:
        """Its address, for MLFLOW_TRACKING_URI."""
        return f"http://127.0.0.1:{self._settings.tracking_port}"

    address = uri

    @property
    def client_environment(self) -> dict[str, str]:
        """What MLflow's client finds it by, as the account `pipeline`."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": ACCOUNT,
            "MLFLOW_TRACKING_PASSWORD": self._settings.pipeline_password,
        }

    def start(self) -> None:
        """Start it; all its secrets reach it by environment."""
        port = self._settings.tracking_port
        environment = {
            **self._database.client_environment,
            **self._store.client_environment(self._settings.artifacts_key),
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg:///{DATABASE}",
            "MLFLOW_SERVE_ARTIFACTS": "true",
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{ARTIFACTS_BUCKET}",
            "MLFLOW_HOST": "127.0.0.1",
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},localhost:{port}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_AUTH_CONFIG_PATH": str(_AUTHENTICATION),
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._settings.admin_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._settings.session_key,
        }
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
        self.process.start(command, environment)

    def ready(self) -> bool:
        """Return whether it answers; make the account `pipeline` where it is missing."""
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
            self._make_account()
        except urllib.error.HTTPError as error:
            if error.code in _REFUSED:
                raise MetalearnError(
                    f"MLflow at {self.uri} does not take the password of `{ADMIN}` in settings.json ({error.code}): "
                    "it was changed there; write the new one into the file"
                ) from None
            return False
        except (urllib.error.URLError, OSError):
            return False
        return True

    def stop(self) -> None:
        """End it."""
        self.process.stop()

    def _make_account(self) -> None:
        content = {"username": ACCOUNT, "password": self._settings.pipeline_password}
        token = base64.b64encode(f"{ADMIN}:{self._settings.admin_password}".encode()).decode()
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/users/create",
            json.dumps(content).encode(),
            {"Authorization": f"Basic {token}", "Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=20).close()
        except urllib.error.HTTPError as error:
            with error:
                if b"RESOURCE_ALREADY_EXISTS" not in error.read():
                    raise
