"""What can go wrong between here and the cluster, each as one line that says what to do."""

import json
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from urllib3 import exceptions

from metalearn_core.errors import MetalearnError
from pipelines.cluster.connection import Connection

LONGEST_TEXT = 300
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {429, 500, 502, 503, 504}


class ClusterError(MetalearnError):
    """The cluster refuses, or what answers is not Kubeflow Pipelines."""


class ConflictError(ClusterError):
    """What was to be made is there already."""


class UnavailableError(ClusterError):
    """No answer, or one that says that it will be better later; whether the request was carried out is not known."""


def refusal(
    connection: Connection, method: str, url: str, status: int, headers: Mapping[str, str], body: bytes | str | None
) -> ClusterError:
    """Return the error for an answer that is no success."""
    host, path = connection.host, urlsplit(url).path
    where = f"in namespace {connection.namespace}" if connection.namespace else "there; is --namespace missing?"
    if status in _REDIRECTS:
        return ClusterError(_redirected(connection, url, headers.get("Location") or ""))
    texts = {
        401: f"{host} wants a log-in (401): {connection.credentials.advice()}",
        403: f"{host} does not permit {method} {path} (403) {where}",
        404: f"{host} has no {path} (404): is --host the address of Kubeflow Pipelines?",
        409: f"{host} has it already ({method} {path}, 409)",
    }
    text = texts.get(status) or f"{host} failed at {method} {path} ({status})"
    said = said_in(body, connection)
    kind = ConflictError if status == 409 else UnavailableError if status in _PASSING else ClusterError
    return kind(f"{text}: {said}" if said else text)


def _redirected(connection: Connection, url: str, location: str) -> str:
    target, asked = urlsplit(location), urlsplit(url)
    shown = urlunsplit((target.scheme, target.netloc.rpartition("@")[2], target.path, "", ""))
    if (target.netloc, target.path, target.scheme) == (asked.netloc, asked.path, "https"):
        address = urlunsplit(urlsplit(connection.host)._replace(scheme="https"))
        return f"{connection.host} redirects to https: give --host {address}"
    return (
        f"{connection.host} asks for a log-in (it redirects to {shown or 'another page'}): "
        f"{connection.credentials.advice()}"
    )


def no_page(connection: Connection, body: bytes) -> ClusterError:
    """Return the error for an answer that is not of the API."""
    if body.lstrip()[:1] == b"<":
        return ClusterError(
            f"{connection.host} answers with a web page (HTML), most likely a log-in, not as Kubeflow Pipelines: "
            f"{connection.credentials.advice()}; or --host is not its address"
        )
    return ClusterError(f"{connection.host} does not answer as Kubeflow Pipelines does: is --host its address?")


def no_answer(connection: Connection, error: Exception) -> ClusterError:
    """Return the error for a request that got no answer."""
    host = connection.host
    if isinstance(error, exceptions.NameResolutionError):
        return UnavailableError(f"{host} does not answer: its name is not known")
    if isinstance(error, exceptions.NewConnectionError):
        return UnavailableError(f"{host} does not answer: {_cause(error)}")
    if isinstance(error, exceptions.ConnectTimeoutError):
        return UnavailableError(f"{host} does not answer: no connection in time")
    if isinstance(error, exceptions.ReadTimeoutError):
        return UnavailableError(f"{host} took longer than {connection.timeout_s:g} seconds to answer (--timeout)")
    if isinstance(error, exceptions.SSLError):
        return insecure(connection, str(error))
    return UnavailableError(f"{host} dropped the connection: {_cause(error)}")


def insecure(connection: Connection, text: str) -> ClusterError:
    """Return the error for a host whose certificate is not trusted."""
    return ClusterError(
        f"{connection.host}: no secure connection: --ca-file names the certificates to trust "
        f"({' '.join(text.split())[:LONGEST_TEXT]})"
    )


def said_in(body: bytes | str | None, connection: Connection) -> str:
    """Return what an answer's body says, without secrets: the message of an error of KFP's API, else nothing."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        content = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(content, dict):
        return ""
    said = next((content[name] for name in ("message", "error_message", "error") if content.get(name)), "")
    return without_secrets(" ".join(str(said).split()), connection)[:LONGEST_TEXT]


def without_secrets(text: str, connection: Connection) -> str:
    """Return a text without the connection's credentials."""
    for secret in connection.credentials.secrets():
        text = text.replace(secret, "***")
    return text


def _cause(error: BaseException) -> str:
    """Return the reason that the operating system gives, at the end of a chain of exceptions."""
    while isinstance(error.__cause__ or error.__context__, Exception):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split())[:LONGEST_TEXT].lower() or type(error).__name__
