"""The server's image: whom it trusts on its way to the database."""

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install '.[dev]'")

ROOT = Path(__file__).parents[2]
_SSL_REQUEST = 8  # bytes


def test_the_image_says_where_the_authorities_of_its_system_are_and_has_them() -> None:
    recipe = (ROOT / "infra/images/mlflow-server.Containerfile").read_text()
    assert "PGSSLROOTCERT=system" in (ROOT / "infra/kubernetes/README.md").read_text()
    [place] = re.findall(r"SSL_CERT_FILE=(\S+)", recipe)
    assert f"test -s {place}" in recipe


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a server that speaks TLS as PostgreSQL does and then hangs up, and its authority's certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    both, authority = tmp_path / "server.pem", tmp_path / "authority.pem"
    both.write_bytes(pem + key.private_bytes(*form))
    authority.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    context.set_alpn_protocols(["postgresql"])
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(_SSL_REQUEST)
                connection.sendall(b"S")
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(1)
                except OSError:
                    pass

    threading.Thread(target=serve, daemon=True).start()
    yield listening.getsockname()[1], authority
    listening.close()


@pytest.mark.parametrize("told", [False, True])
def test_psycopg_trusts_the_systems_authorities_only_where_it_is_told_their_place(
    database: tuple[int, Path], monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    port, authority = database
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if told:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    options = {"sslmode": "verify-full", "sslrootcert": "system", "gssencmode": "disable", "connect_timeout": 10}
    with pytest.raises(psycopg.OperationalError) as caught:
        psycopg.connect(host="localhost", port=port, user="me", dbname="mlflow", **options)
    assert ("certificate verify failed" in str(caught.value)) is not told, caught.value
