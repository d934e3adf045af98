"""Hosts that are away, or no Kubeflow Pipelines; who asks, and who may not."""

import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metalearn_core.errors import UsageError
from pipelines.cluster.connection import Connection, Credentials, read_credentials
from pipelines.cluster.errors import without_secrets
from tests.pipelines.cluster.kfp_server import (
    Cluster,
    Handler,
    KfpServer,
    drop,
    log_in,
    refuse,
    stall,
    web_page,
)
from tests.pipelines.conftest import Answer

Submit = Callable[..., Answer]
Refused = Callable[..., str]
TOKEN = "a-token-of-a-person"
ANSWERS_AFTER_S = 60


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:  # bound, and listened on by nobody
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_host_that_does_not_answer_is_named(submit: Submit, refused: Refused, closed_port: int) -> None:
    host = f"http://127.0.0.1:{closed_port}"
    refused(submit(host=host), 1, host, "does not answer", "connection refused")


def test_a_name_that_nobody_knows_is_named(submit: Submit, refused: Refused) -> None:
    refused(submit(host="http://kubeflow.invalid"), 1, "http://kubeflow.invalid", "name is not known")


@pytest.mark.parametrize(
    "host",
    [
        "kubeflow.example.com",
        "ftp://kubeflow.example.com",
        "https://",
        "https://kubeflow.example.com/#/runs",
        "https://kubeflow.example.com:port",
    ],
)
def test_what_is_no_address_is_refused(submit: Submit, refused: Refused, host: str) -> None:
    refused(submit(host=host), 2, "--host", "https://kubeflow.example.com/pipeline")


def test_a_password_in_the_address_is_refused_and_not_shown(submit: Submit, refused: Refused) -> None:
    answer = submit(host="https://me:secret-word@kubeflow.example.com")
    assert "secret-word" not in refused(answer, 2, "--host", "no user names or passwords")
    answer = submit("--tracking-uri", "http://me:secret-word@mlflow.example.com")
    assert "secret-word" not in refused(answer, 2, "--tracking-uri", "secret")


def test_a_web_page_is_no_answer(submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused) -> None:
    cluster.fault("GET", "/healthz", web_page)
    refused(submit(), 1, server.host, "HTML", "log-in", "METALEARN_KFP_TOKEN")


def test_an_answer_that_is_no_json_is_none(submit: Submit, cluster: Cluster, refused: Refused) -> None:
    cluster.fault("GET", "/healthz", lambda handler: handler.send(200, "ok", "text/plain"))
    refused(submit(), 1, "does not answer as Kubeflow Pipelines")


def test_a_way_to_a_log_in_is_not_followed(
    submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused
) -> None:
    cluster.fault("GET", "/healthz", log_in)
    assert "secret-state" not in refused(submit(), 1, server.host, "log-in", "/dex/auth")
    assert cluster.asked() == []


def test_a_session_that_ends_between_two_requests_is_told(submit: Submit, cluster: Cluster, refused: Refused) -> None:
    cluster.fault("POST", "/runs", log_in)
    refused(submit(), 1, "log-in")


def test_a_way_to_https_names_the_address(
    submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused
) -> None:
    secure = server.host.replace("http:", "https:")

    def to_https(handler: Handler) -> None:
        handler.send(301, "", Location=secure + "/apis/v2beta1/healthz")

    cluster.fault("GET", "/healthz", to_https)
    refused(submit(), 1, f"--host {secure}")


def test_a_dropped_connection_is_told(submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused) -> None:
    cluster.fault("GET", "/healthz", drop)
    refused(submit(), 1, server.host, "dropped the connection")


def test_an_answer_in_half_is_none(submit: Submit, cluster: Cluster, refused: Refused) -> None:
    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"multi_user"')
        handler.wfile.flush()
        drop(handler)

    cluster.fault("GET", "/pipelines", half)
    refused(submit(), 1, "dropped the connection")


def test_a_slow_answer_ends_the_waiting(submit: Submit, cluster: Cluster, server: KfpServer, refused: Refused) -> None:
    cluster.fault("GET", "/pipelines", stall(ANSWERS_AFTER_S))
    begin = time.monotonic()
    refused(submit("--timeout", 0.5), 1, server.host, "0.5 seconds", "--timeout")
    assert time.monotonic() - begin < ANSWERS_AFTER_S
    assert not cluster.packages


def test_an_answer_that_comes_in_drops_ends_too(submit: Submit, cluster: Cluster, refused: Refused) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        with suppress(OSError):  # whoever asked has gone
            for _ in range(10 * ANSWERS_AFTER_S):
                handler.wfile.write(b" ")
                handler.wfile.flush()
                time.sleep(0.1)

    cluster.fault("GET", "/pipelines", drip)
    begin = time.monotonic()
    refused(submit("--timeout", 0.5), 1, "0.5 seconds")
    assert time.monotonic() - begin < ANSWERS_AFTER_S


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, ["log-in (401)", "no credentials are given"]),
        (404, ["404", "/apis/v2beta1/pipelines", "--host"]),
        (409, ["has it already", "409"]),
        (500, ["failed", "500"]),
        (503, ["failed", "503"]),
    ],
)
def test_what_the_cluster_refuses_is_told_in_one_line(
    submit: Submit, cluster: Cluster, refused: Refused, status: int, words: list[str]
) -> None:
    cluster.fault("GET", "/pipelines", refuse(status, "because of the moon"))
    refused(submit(), 1, *words, "because of the moon")
    assert not cluster.packages


def test_a_namespace_without_permission_is_named(submit: Submit, cluster: Cluster, refused: Refused) -> None:
    cluster.namespaces = {"team-a"}
    refused(submit("--namespace", "team-b"), 1, "403", "in namespace team-b", "not authorized")
    assert not cluster.packages


# -- who asks


def test_a_token_in_the_environment_is_shown_to_the_host(submit: Submit, cluster: Cluster) -> None:
    cluster.token = TOKEN
    assert submit(METALEARN_KFP_TOKEN=TOKEN).status == 0


def test_a_token_in_a_file_is_read_at_each_request(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    cluster.token = TOKEN

    def rotate(handler: Handler) -> None:
        cluster.token = "the-next-token"
        file.write_text("the-next-token\n")
        handler.send(200, {})

    cluster.fault("GET", "/experiments", rotate)
    assert submit("--token-file", file).status == 0
    assert submit(METALEARN_KFP_TOKEN_FILE=str(file)).status == 0


def test_the_option_goes_before_the_environment(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    cluster.token = TOKEN
    assert submit("--token-file", tmp_path / "token", METALEARN_KFP_TOKEN="another").status == 0


def test_a_pod_shows_its_service_accounts_token(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    cluster.token = TOKEN
    assert submit(KF_PIPELINES_SA_TOKEN_PATH=str(tmp_path / "token")).status == 0


def test_a_cookie_of_a_session_is_shown_to_the_host(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    cluster.cookie = "authservice_session=abc|def; other=1"
    (tmp_path / "cookie").write_text(cluster.cookie + "\n")
    assert submit(METALEARN_KFP_COOKIE=cluster.cookie).status == 0
    assert submit("--cookie-file", tmp_path / "cookie").status == 0


@pytest.mark.parametrize("variable", ["METALEARN_KFP_TOKEN", "METALEARN_KFP_COOKIE"])
def test_wrong_credentials_are_named_and_not_shown(
    submit: Submit, cluster: Cluster, refused: Refused, variable: str
) -> None:
    cluster.token, cluster.cookie = TOKEN, "session=right"
    line = refused(submit(**{variable: "session=wrong-secret"}), 1, "401", variable, "wrong or has expired")
    assert "wrong-secret" not in line


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"METALEARN_KFP_TOKEN": "two\nlines-of-secret"}, "METALEARN_KFP_TOKEN"),
        ({"METALEARN_KFP_TOKEN": "Bearer some-secret"}, "METALEARN_KFP_TOKEN"),
        ({"METALEARN_KFP_TOKEN": "schlüssel-secret"}, "METALEARN_KFP_TOKEN"),
        ({"METALEARN_KFP_COOKIE": "a=b\r\nX-Header: secret"}, "METALEARN_KFP_COOKIE"),
        ({"METALEARN_KFP_COOKIE": "bare-secret"}, "name=value"),
        ({"METALEARN_KFP_TOKEN_FILE": "/nowhere/secret-token"}, "no such file"),
    ],
)
def test_what_can_be_no_credentials_is_refused_and_not_shown(
    submit: Submit, cluster: Cluster, refused: Refused, variables: dict[str, str], words: str
) -> None:
    line = refused(submit(**variables), 2, words)
    assert "secret" not in line.replace("/nowhere/secret-token", "")
    assert cluster.asked() == []


def test_credentials_do_not_come_out_in_what_is_printed_of_them() -> None:
    assert "secret" not in repr(Credentials(token="secret", cookie="session=secret"))
    assert "secret" not in repr(Connection("http://a", "http://a", credentials=Credentials(token="secret")))


def test_a_secret_that_a_server_repeats_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-secret\n")
    for credentials in (
        Credentials(token="a-secret"),
        Credentials(token_file=tmp_path / "token"),
        Credentials(cookie="x=1; session=a-secret"),
    ):
        connection = Connection("http://a", "http://a", credentials=credentials)
        assert "secret" not in without_secrets("a-secret and a-secret are wrong", connection)


def test_a_token_that_vanishes_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "gone"))
    assert read_credentials() == Credentials()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="--token-file"):
        read_credentials(tmp_path / "empty")


# -- a secure connection


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=kubeflow"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def test_a_host_with_an_own_certificate_is_trusted_when_told_so(
    submit: Submit, server: KfpServer, refused: Refused, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    host = server.host.replace("http:", "https:")
    assert submit("--ca-file", certificate[0], host=host).status == 0
    refused(submit(host=host), 1, host, "--ca-file")
    (tmp_path / "broken.pem").write_text("no certificate")
    refused(submit("--ca-file", tmp_path / "broken.pem", host=host), 1, "--ca-file")
    refused(submit("--ca-file", tmp_path / "nowhere.pem", host=host), 2, "--ca-file", "nowhere.pem")


# -- the user's home


def test_kfps_own_files_are_neither_read_nor_written(submit: Submit, cluster: Cluster, tmp_path: Path) -> None:
    home = tmp_path / "home"
    context = home / ".config/kfp/context.json"
    context.parent.mkdir(parents=True)
    context.write_text('{"namespace": "elsewhere", "client_authentication_cookie": "session=of-another"}')
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    answer = submit("--wait", "--json")
    assert answer.status == 0, answer.errors
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
    assert not any("elsewhere" in str(request.query) for request in cluster.requests)
    assert not any(request.headers["cookie"] for request in cluster.requests)
