"""Fixtures: one vpsd per test, on SQLite and on PostgreSQL."""

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from tests.cloud import Cloud
from tests.postgres import TestDatabase, administer, running_postgres
from tests.scheduling import pytest_xdist_make_scheduler  # noqa: F401  # how xdist shares the tests out
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.core import db
from vpsd.errors import DatabaseUnavailable
from vpsd.migrations import schema
from vpsd.settings import Settings

_MEMORY = Path("/dev/shm")  # where there is one


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--quick`: without guests, without PostgreSQL, without tests that start a vpsd of their own."""
    parser.addoption("--quick", action="store_true", help="leave out what needs guests, PostgreSQL or minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what `--quick` leaves out."""
    if config.getoption("quick"):
        items[:] = [item for item in items if _is_quick(item)]


def _is_quick(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "postgresql" in callspec.params.values():
        return False
    fixtures = set(getattr(item, "fixturenames", ()))
    needs = {"postgres", "postgres_template"} & fixtures if callspec is None else set()
    starts_vpsd = "vpsd" in fixtures and not item.nodeid.startswith("tests/cli/")  # those share one
    return not needs and not starts_vpsd and "wheel" not in fixtures and item.get_closest_marker("guest") is None


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file to copy."""
    path = tmp_path_factory.mktemp("template") / "vpsd.sqlite"
    asyncio.run(schema.prepare(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A running PostgreSQL: its URL, with {} for the database's name."""
    with running_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres: str) -> str:
    """The name of a migrated database to copy."""

    async def make() -> None:
        await administer(postgres, "CREATE DATABASE template_vpsd")
        await schema.prepare(postgres.format("template_vpsd"))

    asyncio.run(make())
    return "template_vpsd"


@pytest.fixture(scope="session")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """The catalogue that vpsd starts with."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.toml"
    path.write_text(catalog.default_text())
    return catalog.read_file(path)


@pytest.fixture(scope="session")
def postgres_database(postgres: str, postgres_template: str) -> Iterator[TestDatabase]:
    """A database for one test after the other."""
    database = TestDatabase(postgres, postgres_template)
    yield database
    database.close()


@contextmanager
def in_memory(path: Path) -> Iterator[Path]:
    """Have what is written to a path, and beside it by SQLite, in memory: no test is about what a disk has kept."""
    if not _MEMORY.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="vpsd-test-", dir=_MEMORY) as folder:
        path.symlink_to(Path(folder, path.name))
        yield path


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated, empty database of a test's own; each test that uses one runs on both kinds."""
    if request.param == "sqlite":
        with in_memory(tmp_path / "vpsd.sqlite") as path:
            shutil.copy(request.getfixturevalue("sqlite_template"), path)
            yield f"sqlite:///{path}"
        return
    database: TestDatabase = request.getfixturevalue("postgres_database")
    yield database.as_new()


@pytest.fixture
async def cloud(database_url: str, tmp_path: Path, offered: Catalog) -> AsyncIterator[Cloud]:
    """vpsd with a simulated host."""
    made = Cloud(
        await db.connect(database_url),
        Settings(data_dir=tmp_path, hypervisor="simulator", rate_limit=0, address_rate_limit=0, login_failures=0),
    )
    await made.open(offered)
    yield made
    with suppress(DatabaseUnavailable, sqlite3.Error, asyncpg.PostgresError):  # it may have been taken away
        assert await made.wrong_sums() == []  # whatever a test did
    await made.close()
