"""A fixture an engine, and ``engine``: each of them in turn. A new one is added to :data:`ENGINES`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.engines import Engine, MariaDb, Postgres, Sqlite
from tests.servers.mariadb import MariaDbServer
from tests.servers.postgres import PostgresServer

ENGINES = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.live),
    pytest.param("mariadb", marks=pytest.mark.live),
]
"""Names of fixtures below, each of which gives an :class:`~tests.contracts.engines.Engine`."""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    found: Engine = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def sqlite(tmp_path: Path) -> Sqlite:
    """SQLite with a file of its own."""
    return Sqlite(tmp_path)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of the module's own."""
    with PostgresServer() as running:
        yield running


@pytest.fixture
def postgresql(server: PostgresServer, tmp_path: Path) -> Iterator[Postgres]:
    """PostgreSQL with a database of its own."""
    engine = Postgres(server, tmp_path)
    yield engine
    for database in engine.opened:
        database.close()


@pytest.fixture
def postgres(postgresql: Postgres) -> Postgres:
    """The same one, under the name that the tests of its own use."""
    return postgresql


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDbServer]:
    """A MariaDB server for all tests of this process; each of them has a database of its own."""
    with MariaDbServer() as running:
        yield running


@pytest.fixture
def mariadb(mariadb_server: MariaDbServer, tmp_path: Path) -> Iterator[MariaDb]:
    """MariaDB with a database of its own, and a scratch database beside it."""
    engine = MariaDb(mariadb_server, tmp_path)
    yield engine
    for database in engine.opened:
        database.close()
