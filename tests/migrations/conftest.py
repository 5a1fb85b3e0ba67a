"""Databases without anything in them."""

import asyncio
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import administer


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of a test's own; each test that uses one runs on both kinds."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'old.sqlite'}"
        return
    server: str = request.getfixturevalue("postgres")
    name = f"old_{zlib.crc32(request.node.nodeid.encode()):x}"
    asyncio.run(administer(server, f'CREATE DATABASE "{name}"'))
    yield server.format(name)
    asyncio.run(administer(server, f'DROP DATABASE "{name}" WITH (FORCE)'))
