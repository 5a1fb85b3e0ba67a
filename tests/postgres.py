"""A private PostgreSQL from Debian's package: on a socket in a folder of its own, gone when the tests end."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg


def _tool(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else name


def _as_nobody_important(folder: Path) -> list[str]:
    # PostgreSQL refuses to run as root.
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "postgres", "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


@contextmanager
def running_postgres(*, syncs: bool = False) -> Iterator[str]:
    """Start one, and give the URL of its first database without the database's name.

    `syncs`: what is committed is on the disk, as it is where it counts; tests do without.
    """
    folder = Path(tempfile.mkdtemp(prefix="vpsd-pg-", dir="/tmp"))
    user = _as_nobody_important(folder)
    data = folder / "data"
    control = [*user, _tool("pg_ctl"), "-D", str(data), "-w", "-s"]
    try:
        initdb = [_tool("initdb"), "-D", str(data), "-U", "vpsd", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run([*user, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        options = f"-k {folder} -c listen_addresses='' -c max_connections=120 -c shared_buffers=32MB"
        options += f" -c fsync={'on' if syncs else 'off'}"
        subprocess.run(
            [*control, "-l", str(folder / "log"), "-o", options, "start"], check=True, close_fds=True, cwd=folder
        )
        try:
            yield f"postgresql://vpsd@/{{}}?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def restart(url: str) -> None:
    """End the one of a URL as a crash does, and start it again."""
    folder = Path(url.partition("?host=")[2])
    command = [_tool("pg_ctl"), "-D", str(folder / "data"), "-w", "-s", "-m", "immediate", "-l", str(folder / "log")]
    subprocess.run([*_as_nobody_important(folder), *command, "restart"], check=True, close_fds=True, cwd=folder)


_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()"""
# All that a test could leave besides rows: tables, columns, indexes, sequences; triggers; functions; settings.
_SHAPE = """
SELECT md5(string_agg(line, ';' ORDER BY line)) FROM (
    SELECT concat_ws(' ', c.relname, c.relkind, a.attname, a.atttypid, a.attnotnull) AS line
    FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relnamespace = 'public'::regnamespace
    UNION ALL SELECT concat_ws(' ', tgname, tgrelid::regclass, tgenabled) FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT proname || prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT setconfig::text FROM pg_db_role_setting
) AS lines"""
_TABLES = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
_SEQUENCES = "SELECT format('%I', sequencename) FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1"


async def administer(server: str, statement: str) -> None:
    """Run a statement beside the databases of tests."""
    connection = await asyncpg.connect(server.format("postgres"))
    await connection.execute(statement)
    await connection.close()


class TestDatabase:
    """A database that is made from a template once, and given to one test after the other as it was then.

    To make one takes PostgreSQL a third of a second, to empty it a few milliseconds.
    """

    __test__ = False
    _NAME = "test"

    def __init__(self, server: str, template: str) -> None:
        """`server`: the URL, with {} for a database's name."""
        self._server, self._template = server, template
        self._runner = asyncio.Runner()
        self._connection: Any = None
        self._shape = ""
        self._reset = ""

    def as_new(self) -> str:
        """Its URL; whoever is still connected to it is not any more."""
        self._runner.run(self._make_new())
        return self._server.format(self._NAME)

    def close(self) -> None:
        """Let go of it; it goes with the server."""
        if self._connection is not None:
            self._runner.run(self._connection.close())
        self._runner.close()

    async def _make_new(self) -> None:
        if self._connection is not None:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):  # it may have been restarted
                await self._connection.execute(_OTHERS)
                if await self._connection.fetchval(_SHAPE) == self._shape:
                    await self._connection.execute(self._reset)
                    return
            self._connection.terminate()
        await administer(self._server, f"DROP DATABASE IF EXISTS {self._NAME} WITH (FORCE)")
        await administer(self._server, f"CREATE DATABASE {self._NAME} TEMPLATE {self._template}")
        self._connection = await asyncpg.connect(
            self._server.format(self._NAME), server_settings={"default_transaction_read_only": "off"}
        )
        await self._remember()

    async def _remember(self) -> None:
        """What it takes to bring it back to what it is now."""
        connection = self._connection
        tables = [row[0] for row in await connection.fetch(_TABLES)]
        await connection.execute("CREATE SCHEMA at_first")
        fill = []
        for table in tables:
            if await connection.fetchval(f"SELECT EXISTS (SELECT FROM {table})"):
                await connection.execute(f"CREATE TABLE at_first.{table} AS TABLE {table}")
                fill.append(f"INSERT INTO {table} OVERRIDING SYSTEM VALUE TABLE at_first.{table}")
        numbers = []
        for (name,) in await connection.fetch(_SEQUENCES):
            last, is_called = await connection.fetchrow(f"SELECT last_value, is_called FROM {name}")
            numbers.append(f"SELECT setval('{name}', {last}, {is_called})")
        await connection.execute("SET session_replication_role = replica")  # past foreign keys, and what is append-only
        self._reset = ";".join([*(f"DELETE FROM {table}" for table in tables), *fill, *numbers])
        self._shape = await connection.fetchval(_SHAPE)
