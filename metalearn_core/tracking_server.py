"""The connection to the MLflow server or database: prepared once, quiet, and with errors of one line."""

import hashlib
import logging
import os
import re
import sqlite3
import tempfile
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metalearn_core.errors import MetalearnError, UsageError
from metalearn_core.tracking_page import experiment_tags

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_USERNAME, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
TARGET_VARIABLES = {
    name: name.replace("MLFLOW_TRACKING", "METALEARN_TARGET")
    for name in (_USERNAME, _PASSWORD, "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH")
}
"""What MLflow logs in with, and what it logs in with at the registry that a version is copied to."""
DEFAULT_EXPERIMENT = "few-shot"
LONGEST_TAG = 5000
"""Characters of a tag's value that every database holds; sqlite takes more, PostgreSQL refuses it."""
_SQLITE = "sqlite:///"
_HTTP = ("http://", "https://")
_PATIENCE = {  # a minute of waits: a server that is started again is back; MLflow's own default is four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
}
_IMPATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
}
_CREDENTIALS = re.compile(r"//(?:[^/\s]*|[^/\s:@]*:(?!\d+/)[^\s@]*)@")
_PASSWORD_PARAMETER = re.compile(r"([?&](?:password|sslpassword)=)[^&\s]*", re.IGNORECASE)
_S3_LIBRARIES = ("boto3", "botocore", "s3transfer")
_UNREACHABLE = re.compile(
    r"API request to .* failed with exception|Max retries exceeded|Connection refused|timed out|unable to open database"
)


def tracking_uri() -> str:
    """Return where tracking goes: MLFLOW_TRACKING_URI.

    Raises:
        UsageError: it is not set. There is no default here: the command line sets one from its work directory.
    """
    uri = os.environ.get(URI_VARIABLE)
    if not uri:
        raise UsageError(
            f"{URI_VARIABLE} is not set: name a tracking server (http://…) or database (sqlite:///…/mlflow.db)"
        )
    return uri


def shown(text: str) -> str:
    """Return a URI, or a text with URIs, without user names and passwords, fit for messages and logs.

    A password may hold an `@`, and a `/` too, as databases' URIs let it: all goes up to the last `@` of the authority.
    """
    without = _CREDENTIALS.sub("//", text)
    return _PASSWORD_PARAMETER.sub(r"\1***", without)


def quiet_mlflow() -> Any:
    """Import MLflow, and return it, without its telemetry, advice and progress bars."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
    for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def client(uri: str | None = None) -> Any:
    """Return an `MlflowClient` of the tracking URI, which is also its registry."""
    uri = uri or tracking_uri()
    quiet_mlflow()
    from mlflow import MlflowClient

    with explained(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def elsewhere(uri: str) -> Iterator[None]:
    """Make another tracking URI the one of this process, inside the block.

    What this one is logged in with is not sent there; the variables of `TARGET_VARIABLES` are, where they are set.

    Raises:
        UsageError: MLflow would send the credentials of its file, which does not say what server they are for.
    """
    login = {variable: os.environ.get(own) for variable, own in TARGET_VARIABLES.items()}
    with _environment({URI_VARIABLE: uri, **login}):
        if uri.startswith(_HTTP):
            _check_login(uri, login[_USERNAME], login[_PASSWORD])
        yield


def _check_login(uri: str, username: str | None, password: str | None) -> None:
    """Refuse a login that is none of ours: MLflow fills in from ~/.mlflow/credentials what no variable says.

    What it finds there also goes before a token.
    """
    quiet_mlflow()
    from mlflow.utils.credentials import read_mlflow_creds

    found = read_mlflow_creds()
    if (found.username or None, found.password or None) != (username or None, password or None):
        raise UsageError(
            f"--to {shown(uri)}: MLflow would log in there with what ~/.mlflow/credentials holds: set "
            f"{TARGET_VARIABLES[_USERNAME]} and {TARGET_VARIABLES[_PASSWORD]}, or move that file away"
        )


@contextmanager
def impatience() -> Iterator[None]:
    """Give up within ten seconds, inside the block, where the tracking server does not answer."""
    with _environment(_IMPATIENCE):
        yield


@contextmanager
def explained(uri: str | None = None) -> Iterator[None]:
    """Turn what MLflow, its database and its bucket raise inside the block into a `MetalearnError` of one line."""
    quiet_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, OSError) and not type(error).__module__.startswith("requests"):
            raise  # a full disk, no permission: these name their file themselves
        where = shown(uri or tracking_uri())
        text = " ".join(shown(str(error)).split())
        if _UNREACHABLE.search(text):
            raise MetalearnError(f"tracking server {where} does not answer: {_reason(text)}") from None
        raise MetalearnError(f"tracking server {where}: {text[:300]}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _S3_LIBRARIES:
            raise
        from metalearn_core.storage import objects

        with objects.explained(f"the artifacts of tracking server {shown(uri or tracking_uri())}"):
            raise


def pages(search: Any, **arguments: Any) -> list[Any]:
    """Return all that a search of MLflow's client finds, page by page: each page has a limit."""
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **arguments)
        found += page
        token = page.token
        if not token:
            return found


def is_missing(error: BaseException) -> bool:
    """Return whether an MLflow exception says that what was asked for does not exist."""
    code = getattr(error, "error_code", "")
    return code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "not found" in str(error))


def _reason(text: str) -> str:
    for pattern, reason in (
        (r"Connection refused", "connection refused; is it running?"),
        (r"timed out", "no answer in time; is the address right?"),
        (r"Name or service not known|NameResolutionError|getaddrinfo", "its host name is not known"),
        (r"Connection aborted|Connection reset|Broken pipe", "it breaks the connection off; its log says why"),
        (r"unable to open database", "the database file cannot be opened"),
        (r"too many (\d+) error responses", "it answers with server errors"),
    ):
        if re.search(pattern, text):
            return reason
    return text[:200]


@contextmanager
def lock(purpose: str, uri: str | None = None, timeout_s: float = 600) -> Iterator[None]:
    """Hold a lock against other processes that use the same tracking URI for the same purpose.

    For a sqlite database the lock lies beside it. For a server it holds between the processes of this machine only.

    Raises:
        MetalearnError: another process still holds it after `timeout_s` seconds.
    """
    uri = uri or tracking_uri()
    database = sqlite_path(uri)
    if database:
        path = database.with_name(f".{database.name}.{_file_name(purpose)}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        key = hashlib.sha256(f"{uri}\0{os.getuid()}".encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"metalearn-{key}-{_file_name(purpose)}.lock"
    try:
        with FileLock(path, timeout=timeout_s):
            yield
    except Timeout:
        raise MetalearnError(
            f"{purpose}: another process has been at it for {timeout_s:.0f} seconds ({path}); try again when it is done"
        ) from None


def _file_name(purpose: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", purpose)[:60]
    return f"{plain}-{hashlib.sha256(purpose.encode()).hexdigest()[:8]}"


def sqlite_path(uri: str) -> Path | None:
    """Return the database file of a sqlite URI; None for anything else."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.removeprefix(_SQLITE).partition("?")[0])


def prepare(uri: str, artifact_root: Path | None = None, experiment: str | None = None) -> None:
    """Make sure that tracking at `uri` works, and that an experiment is there: it is made where it is missing.

    A sqlite database is made, or migrated to this MLflow's schema, while a lock keeps other processes away; later ones
    find it ready. A server is asked once, and must answer within ten seconds.

    Args:
        uri: sqlite:///…, http(s)://…, or whatever else MLflow takes.
        artifact_root: where the artifacts of a new experiment of a database go; a server has a place of its own.
        experiment: its name; None: none is needed, as for who only reads.

    Raises:
        MetalearnError: nothing answers there, the folder cannot be written, or the experiment was deleted.
    """
    database = sqlite_path(uri)
    if uri.startswith("file:") or ("://" not in uri and database is None):
        raise UsageError(f"tracking URI {uri!r}: MLflow no longer keeps runs in files; use sqlite:///{uri}/mlflow.db")
    quiet_mlflow()
    with lock("prepare", uri):
        if database:
            _migrate(uri, database)
        with impatience():
            if experiment is None:
                with explained(uri):
                    client(uri).search_experiments(max_results=1)
            else:
                experiment_id(experiment, artifact_root, uri)


def experiment_id(name: str, artifact_root: Path | None = None, uri: str | None = None) -> str:
    """Return the id of the experiment `name`, made where it is missing."""
    uri = uri or tracking_uri()
    mlflow_client = client(uri)
    with explained(uri):
        found = mlflow_client.get_experiment_by_name(name)
        if found is None:
            # The client of a local database reports a relative default location: ours is absolute.
            ours = artifact_root if not uri.startswith(_HTTP) else None
            location = (ours / name).absolute().as_uri() if ours else None
            return str(_create(mlflow_client, name, location))
        _describe(mlflow_client, found)
    if found.lifecycle_stage == "deleted":
        raise MetalearnError(
            f"experiment {name!r} was deleted at {shown(uri)}: restore it there (mlflow experiments restore "
            f"--experiment-id {found.experiment_id}), or give another name"
        )
    return str(found.experiment_id)


def _describe(mlflow_client: Any, experiment: Any) -> None:
    """Give an experiment that somebody else has made what MLflow's page knows ours by, where that may be."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        for name, value in experiment_tags().items():
            if name not in experiment.tags and experiment.lifecycle_stage != "deleted":
                mlflow_client.set_experiment_tag(experiment.experiment_id, name, value)


def _create(mlflow_client: Any, name: str, location: str | None) -> str:
    """Create the experiment, unless another process has just done so."""
    from mlflow.exceptions import MlflowException

    try:
        return str(mlflow_client.create_experiment(name, artifact_location=location, tags=experiment_tags()))
    except MlflowException:
        found = mlflow_client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _migrate(uri: str, database: Path) -> None:
    """Make a sqlite database, or bring it to the schema of the installed MLflow.

    MLflow changes a schema in many steps, and a process that is killed between two leaves a database that no later
    migration can take. So the steps are made on a copy, which takes the database's place when all are done.
    """
    database.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(database if database.exists() else database.parent, os.W_OK):
        raise MetalearnError(f"tracking database {database}: no permission to write there")
    is_new = not database.exists() or database.stat().st_size == 0
    if not is_new and _is_current(uri, database):
        return
    for remains in database.parent.glob(f".{database.name}.*.tmp*"):
        remains.unlink(missing_ok=True)
    copy = database.with_name(f".{database.name}.{uuid.uuid4().hex}.tmp")
    try:
        if not is_new:
            with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        _upgrade(f"{_SQLITE}{copy}", database, is_new)
        copy.replace(database)
    finally:
        for remains in database.parent.glob(f"{copy.name}*"):
            remains.unlink(missing_ok=True)


def _is_current(uri: str, database: Path) -> bool:
    from mlflow.store.db import utils

    with _schema_errors(database), _engine(uri) as engine:
        return bool(utils._get_schema_version(engine) == utils._get_latest_schema_revision())


def _upgrade(uri: str, database: Path, is_new: bool) -> None:
    from mlflow.store.db import utils

    with _schema_errors(database), _engine(uri) as engine:
        if is_new:
            utils._initialize_tables(engine)
        else:
            utils._upgrade_db(engine)


@contextmanager
def _engine(uri: str) -> Iterator[Any]:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine(uri)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _schema_errors(database: Path) -> Iterator[None]:
    """Say in one line what is wrong with a database, without the statement that met it."""
    quiet_mlflow()
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        cause = getattr(error, "orig", None) or error
        text = " ".join(str(cause).split())[:200]
        what = (
            "is damaged, or no database: move it away, or restore a copy"
            if isinstance(cause, sqlite3.DatabaseError) and not isinstance(cause, sqlite3.OperationalError)
            else "cannot be brought to the schema of the installed MLflow"
        )
        raise MetalearnError(f"tracking database {database} {what}: {text}") from None


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for the length of the block, None being unset: MLflow reads these at each request."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
