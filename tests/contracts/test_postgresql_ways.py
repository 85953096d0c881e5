"""The ways to a real PostgreSQL, through the whole adapter: tunnel and client, with TLS and without, behind a proxy."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.databases.postgresql.database import PostgresqlDatabase
from pipeline.errors import PipelineError, Refused, Unreachable
from pipeline.model import DatabaseSettings
from pipeline.transports.local import LocalTransport
from tests.contracts.engines import HOST_PATH, SECRET, script
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import DatabaseAddress, PostgresServer

pytestmark = [pytest.mark.slow, pytest.mark.live]

WAYS = ["tunnel", "client"]
_OTHER_NAME = r"does not match host name"


@dataclass(frozen=True)
class Authority:
    """A certificate authority of the test's own."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def made(cls, name: str) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _certificate(subject, subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, *names: str) -> tuple[bytes, bytes]:
        """A server's certificate for these names and addresses, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "database")])
        others: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
        ]
        certificate = (
            _certificate(subject, self.certificate.subject, key.public_key())
            .add_extension(x509.SubjectAlternativeName(others), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )


@dataclass(frozen=True)
class Tls:
    """A server that lets nobody in without TLS, whose certificate is for ``localhost`` alone."""

    address: DatabaseAddress
    ca: Path
    other_ca: Path


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = Authority.made("the test's"), Authority.made("somebody's")
    (folder / "ca.pem").write_bytes(authority.pem())
    (folder / "other.pem").write_bytes(other.pem())
    certificate, key = authority.server("localhost")
    with PostgresServer(certificate=certificate, key=key) as server:
        yield Tls(server.create_database(password=SECRET), folder / "ca.pem", folder / "other.pem")


def opened(address: DatabaseAddress, folder: Path, **changes: Any) -> PostgresqlDatabase:
    settings = DatabaseSettings(
        engine="postgresql", host=address.host, port=address.port, name=address.name, user=address.user
    ).model_copy(update=changes)
    return PostgresqlDatabase(
        LocalTransport("app1", environment={"PATH": HOST_PATH}),
        settings,
        address.password,
        backups=str(folder / "backups"),
        customer="acme",
        environment="test",
    )


# --- TLS ---------------------------------------------------------------------------------------------------------------


def test_a_server_that_demands_tls_says_what_to_write(tls: Tls, tmp_path: Path) -> None:
    database = opened(tls.address, tmp_path)
    with pytest.raises(Unreachable) as raised:
        database.history()
    assert "tls: verify-full" in raised.value.render()
    assert SECRET not in raised.value.render()


@pytest.mark.parametrize("way", WAYS)
def test_tls_with_the_right_name_and_authority(tls: Tls, tmp_path: Path, way: str) -> None:
    database = opened(tls.address, tmp_path, way=way, host="localhost", tls="verify-full", tls_ca=str(tls.ca))
    try:
        assert database.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == [(True,)]
        made, data = script(f"{way}.sql", f"CREATE TABLE of_{way} (n integer)")
        assert database.apply(made, data, fence=1, run="r", release="1+1")
        assert f"{way}.sql" in {row.script for row in database.history()}
        assert database.backup(way).size
    finally:
        database.close()


@pytest.mark.parametrize("way", WAYS)
def test_tls_with_another_authority_is_refused(tls: Tls, tmp_path: Path, way: str) -> None:
    database = opened(tls.address, tmp_path, way=way, host="localhost", tls="verify-full", tls_ca=str(tls.other_ca))
    with pytest.raises(Unreachable, match="certificate verify failed"):
        database.history()
    with pytest.raises(PipelineError, match="certificate verify failed"):
        database.backup("one")


@pytest.mark.parametrize("way", WAYS)
def test_tls_with_a_name_that_the_certificate_lacks_is_refused(tls: Tls, tmp_path: Path, way: str) -> None:
    database = opened(tls.address, tmp_path, way=way, host="127.0.0.1", tls="verify-full", tls_ca=str(tls.ca))
    with pytest.raises(Unreachable, match=_OTHER_NAME):
        database.history()
    with pytest.raises(PipelineError, match=_OTHER_NAME):
        database.backup("one")


# --- a proxy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_proxy_that_pools_transactions_is_refused(server: PostgresServer, tmp_path: Path, way: str) -> None:
    with PgBouncer(server.create_database(password=SECRET), mode="transaction") as proxy:
        database = opened(proxy.address, tmp_path, way=way)
        try:
            made, data = script("a.sql", "CREATE TABLE a (n integer)")
            with pytest.raises(Refused) as refused:
                database.apply(made, data, fence=1, run="r", release="1+1")
            assert "pools transactions" in refused.value.render()
            assert database.query("SELECT to_regclass('a')") == [(None,)]
            (reason,) = database.server().refusals
            assert "pools transactions" in reason
        finally:
            database.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_proxy_that_pools_sessions_will_do(server: PostgresServer, tmp_path: Path, way: str) -> None:
    with PgBouncer(server.create_database(password=SECRET), mode="session") as proxy:
        database = opened(proxy.address, tmp_path, way=way)
        try:
            made, data = script("a.sql", "CREATE TABLE a (n integer)")
            assert database.apply(made, data, fence=1, run="r", release="1+1")
            assert database.server().refusals == ()
        finally:
            database.close()
