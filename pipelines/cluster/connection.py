"""Where Kubeflow Pipelines answers and who asks; credentials come from the environment or files, and stay unseen."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from metalearn_core.errors import UsageError

TOKEN_VARIABLE = "METALEARN_KFP_TOKEN"
TOKEN_FILE_VARIABLE = "METALEARN_KFP_TOKEN_FILE"
COOKIE_VARIABLE = "METALEARN_KFP_COOKIE"
COOKIE_FILE_VARIABLE = "METALEARN_KFP_COOKIE_FILE"
SERVICE_ACCOUNT_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow mounts the token that a pod shows to Kubeflow Pipelines."""
_ELSEWHERE = f"set {TOKEN_VARIABLE} or {COOKIE_VARIABLE}, or give --token-file or --cookie-file"


@dataclass(frozen=True)
class Credentials:
    """What every request shows. A token's file is read at each request: whoever rotates it need not tell.

    Attributes:
        token: bearer token.
        token_file: a file that holds one.
        cookie: of a session that a log-in page began, as `authservice_session=…`.
        origin: where they come from, in words; empty: there are none.
    """

    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    cookie: str | None = field(default=None, repr=False)
    origin: str = ""

    def secrets(self) -> list[str]:
        """Return what must never be shown."""
        kept = [self.token, self.cookie, *(part.partition("=")[2] for part in (self.cookie or "").split(";"))]
        if self.token_file and self.token_file.is_file():
            kept.append(self.token_file.read_text(errors="replace").strip())
        return [secret for secret in kept if secret and len(secret) > 3]

    def advice(self) -> str:
        """Return what to do where they are not accepted."""
        return f"{self.origin} is wrong or has expired" if self.origin else f"no credentials are given: {_ELSEWHERE}"


@dataclass(frozen=True)
class Connection:
    """How to reach one installation of Kubeflow Pipelines.

    Attributes:
        host: address of its API.
        ui: address of its page; the same on most clusters.
        namespace: whose runs they are; None: the installation has one user.
        credentials: what requests show.
        ca_file: certificates that the host's own is checked against; None: the usual ones.
        timeout_s: how long one answer may take.
    """

    host: str
    ui: str
    namespace: str | None = None
    credentials: Credentials = Credentials()
    ca_file: Path | None = None
    timeout_s: float = 60

    def __post_init__(self) -> None:
        for name, address in (("--host", self.host), ("--ui-host", self.ui)):
            _check_address(name, address)
        if self.ca_file and not self.ca_file.is_file():
            raise UsageError(f"--ca-file: there is no file {self.ca_file}")

    def page(self, *parts: str) -> str:
        """Return the address of a page of KFP's, as `runs/details/ID`."""
        return f"{self.ui.rstrip('/')}/#/{'/'.join(parts)}"


def _check_address(option: str, address: str) -> None:
    try:
        parts = urlsplit(address)
        right = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, say
        raise UsageError(f"{option}: expected an address like https://kubeflow.example.com/pipeline") from None
    if parts.username or parts.password or "@" in address:
        raise UsageError(f"{option}: no user names or passwords in the address: {_ELSEWHERE}")
    if not right or parts.query or parts.fragment:
        raise UsageError(f"{option}: expected an address like https://kubeflow.example.com/pipeline, got {address!r}")


def read_credentials(token_file: Path | None = None, cookie_file: Path | None = None) -> Credentials:
    """Return the credentials of this process: options before the environment before the pod's service account.

    Raises:
        UsageError: a file is not there, or what is in it can be no token or cookie.
    """
    token, token_path, token_origin = _find("token", TOKEN_VARIABLE, TOKEN_FILE_VARIABLE, token_file)
    cookie, _, cookie_origin = _find("cookie", COOKIE_VARIABLE, COOKIE_FILE_VARIABLE, cookie_file)
    if cookie and "=" not in cookie:
        raise UsageError(f"{cookie_origin}: expected name=value, as in authservice_session=…; its content is not shown")
    if not token and not cookie:
        token_path = Path(os.environ.get(SERVICE_ACCOUNT_VARIABLE) or SERVICE_ACCOUNT_TOKEN)
        if not token_path.is_file():
            return Credentials()
        read_secret(token_path, "service account's token")
        return Credentials(token_file=token_path, origin=f"the service account's token in {token_path}")
    origin = " or ".join(where for where in (token_origin, cookie_origin) if where)
    return Credentials(None if token_path else token, token_path, cookie, origin)


def _find(kind: str, variable: str, file_variable: str, given: Path | None) -> tuple[str | None, Path | None, str]:
    """Return a secret, the file that holds it and where it comes from."""
    if given is None and (value := os.environ.get(variable)):
        return _checked(value, variable, "" if kind == "token" else " "), None, f"the {kind} in {variable}"
    if given is None and os.environ.get(file_variable):
        given = Path(os.environ[file_variable])
    if given is None:
        return None, None, ""
    return read_secret(given, f"--{kind}-file", "" if kind == "token" else " "), given, f"the {kind} in {given}"


def read_secret(path: Path, name: str, also: str = "") -> str:
    """Return the one line that a file holds.

    Raises:
        UsageError: it cannot be read, or holds something else.
    """
    try:
        return _checked(path.read_text(), f"{name} {path}", also)
    except OSError as error:
        raise UsageError(f"{name} {path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} {path}: expected text") from None


def _checked(value: str, name: str, also: str) -> str:
    """Return a secret that can go into a header: what cannot would come out in the error that refuses it."""
    line = value.strip()
    if not line or not all("!" <= character <= "~" or character in also for character in line):
        raise UsageError(f"{name}: expected one line of visible characters; its content is not shown")
    return line
