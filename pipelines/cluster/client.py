"""KFP's client, kept from what would surprise: files in the user's home, questions, endless waits, printed links."""

import json
import time
from typing import Any

import kfp
import urllib3
from kfp.client.token_credentials_base import TokenCredentialsBase
from kfp_server_api.exceptions import ApiException
from kfp_server_api.rest import RESTClientObject

from pipelines.cluster.connection import Connection, read_secret
from pipelines.cluster.errors import insecure, no_answer, no_page, refusal
from pipelines.cluster.quiet import quiet

_CONNECT_S = 10
_CHUNK_BYTES = 65536
_NOT_ASKED = "-"


class ClusterClient(kfp.Client):  # type: ignore[misc]
    """`kfp.Client` for one connection; whatever goes wrong on the way is a `ClusterError`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        credentials = connection.credentials
        with quiet():
            super().__init__(
                host=connection.host,
                existing_token=credentials.token,
                credentials=_TokenFile(connection) if credentials.token_file else None,
                cookies=credentials.cookie,
                ssl_ca_cert=str(connection.ca_file) if connection.ca_file else None,
                ui_host=connection.ui,
            )
        api_client = self._run_api.api_client
        api_client.rest_client = _Rest(api_client.configuration, connection)
        self.set_user_namespace(connection.namespace or "")

    def _load_context_setting_or_default(self) -> None:
        """Take nothing from the user's home. With a namespace, KFP asks the host nothing yet."""
        self._context_setting = {"namespace": _NOT_ASKED}

    def set_user_namespace(self, namespace: str) -> None:
        """Keep the namespace in memory: KFP writes it into the user's home, for every other program to find."""
        self._context_setting["namespace"] = namespace

    def _load_config(self, host: str, _client: Any, namespace: str, _other: Any, _secret: Any, *rest: Any) -> Any:
        """Leave out the log-in by browser, and follow no redirect: it leads to a page that people log in on."""
        configuration = super()._load_config(host, None, namespace, None, None, *rest)
        configuration.retries = urllib3.Retry(total=False)
        return configuration


class _TokenFile(TokenCredentialsBase):  # type: ignore[misc]
    """Reads the token at each request."""

    def __init__(self, connection: Connection) -> None:
        self._path = connection.credentials.token_file

    def refresh_api_key_hook(self, config: Any) -> None:
        assert self._path is not None
        config.api_key["authorization"] = read_secret(self._path, "token file")


class _Rest(RESTClientObject):  # type: ignore[misc]
    """Sends requests with a time-out, and takes nothing but JSON for an answer."""

    def __init__(self, configuration: Any, connection: Connection) -> None:
        super().__init__(configuration)
        self._connection = connection
        self.pool_manager: Any = _Hurried(self.pool_manager, connection.timeout_s)

    def request(self, method: str, url: str, **options: Any) -> Any:
        connection = self._connection
        options["_request_timeout"] = (min(_CONNECT_S, connection.timeout_s), connection.timeout_s)
        try:
            response = super().request(method, url, **options)
        except ApiException as error:
            if not error.status:
                raise insecure(connection, str(error.reason)) from None
            raise refusal(connection, method, url, error.status, error.headers or {}, error.body) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise no_answer(connection, error) from None
        if not _is_object(response.data):
            raise no_page(connection, response.data)
        return response


class _Hurried:
    """Bounds the time of a whole answer: urllib3's time-out begins anew with every byte of it."""

    def __init__(self, pool: urllib3.PoolManager, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    def request(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        deadline = time.monotonic() + self._timeout_s
        response = self._pool.request(method, url, **{**options, "preload_content": False})
        body = bytearray()
        while chunk := response.read1(_CHUNK_BYTES):
            body += chunk
            if time.monotonic() > deadline:
                response.close()
                raise urllib3.exceptions.ReadTimeoutError(None, url, "the answer is not complete in time")  # type: ignore[arg-type]
        response.release_conn()
        return urllib3.HTTPResponse(bytes(body), response.headers, response.status, reason=response.reason)


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False
