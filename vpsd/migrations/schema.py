"""Brings a database to the schema that this code works with, and refuses one that it does not know."""

import asyncio
import fcntl
import logging
import os
import pkgutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, MetaData, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError

import vpsd
from vpsd.core.db import metadata, sqlite_path
from vpsd.core.files import create_private, open_private
from vpsd.errors import Misconfigured
from vpsd.migrations import HEAD, heal, shape

log = logging.getLogger(__name__)
T = TypeVar("T")

_LOCK_KEY = 0x76707364  # "vpsd"
_COMPANIONS = {"_litestream_lock", "_litestream_seq", "spatial_ref_sys"}  # Litestream's and PostGIS's: in an empty one


def _nothing_in_the_way() -> None:
    """A new database may be made."""


async def prepare(url: str, before_new: Callable[[], None] = _nothing_in_the_way) -> str | None:
    """Migrate the database of a URL where needed; returns what it came from, None when nothing was to do.

    That is "nothing", a version, or "an unfinished" one (see `heal`). `before_new` is called before anything is made or
    changed where there is no database yet, or an empty one; what it raises is raised.

    A later vpsd's is left as it is where all that it has added does not concern this one, which is how one goes back
    after an upgrade. Raises `Misconfigured`, having changed nothing, for a database of another program, for a later one
    that takes away or refuses what this vpsd needs, and for one whose tables differ from what its version says. Tables
    of other programs beside vpsd's are left alone.
    """
    return await run(url, partial(_prepare, before_new), before_new)


async def run(url: str, work: Callable[[Connection], T], before_new: Callable[[], None] = _nothing_in_the_way) -> T:
    """Do something in one transaction that keeps other migrations out."""
    if url.startswith("sqlite"):
        return await asyncio.to_thread(_run_sqlite, sqlite_path(url), work, before_new)
    from sqlalchemy.ext.asyncio import create_async_engine  # brings the ORM with it, which nobody else needs

    engine = create_async_engine("postgresql+asyncpg" + url[url.index("://") :])
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
            return await connection.run_sync(work)
    except (OSError, SQLAlchemyError) as error:
        raise Misconfigured(f"the database of VPSD_DATABASE_URL cannot be used: {error}") from error
    finally:
        await engine.dispose()


async def snapshot(url: str, work: Callable[[Connection], T]) -> T:
    """Read everything as it was at one moment, while others go on writing."""
    if url.startswith("sqlite"):
        return await asyncio.to_thread(_snapshot_sqlite, sqlite_path(url), work)
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine("postgresql+asyncpg" + url[url.index("://") :], isolation_level="REPEATABLE READ")
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(work)
    except (OSError, SQLAlchemyError) as error:
        raise Misconfigured(f"the database of VPSD_DATABASE_URL cannot be used: {error}") from error
    finally:
        await engine.dispose()


def _snapshot_sqlite(path: str, work: Callable[[Connection], T]) -> T:
    if not Path(path).exists():
        raise Misconfigured(f"there is no database {path}")
    engine = create_engine(f"sqlite:///{path}", connect_args={"isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    try:
        with engine.connect() as connection:
            return work(connection)
    except SQLAlchemyError as error:
        raise Misconfigured(f"the database {path} cannot be used: {error}") from error
    finally:
        engine.dispose()


def _run_sqlite(path: str, work: Callable[[Connection], T], before_new: Callable[[], None]) -> T:
    # The driver of its own would commit before each DDL statement; so it is told not to meddle.
    engine = create_engine(f"sqlite:///{path}", connect_args={"isolation_level": None})
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with os.fdopen(open_private(Path(path + ".lock")), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not Path(path).exists() or not Path(path).stat().st_size:
                before_new()  # before it is opened: SQLite deletes the log that may lie beside it
            create_private(Path(path))
            with engine.begin() as connection:
                return work(connection)
    except SQLAlchemyError as error:
        raise Misconfigured(f"the database {path} cannot be used: {error}") from error
    finally:
        engine.dispose()


def _prepare(before_new: Callable[[], None], connection: Connection) -> str | None:
    everything, released = shape.describe(connection), shape.released()
    present, found = version(connection, everything), shape.ours(everything)
    came_from = "nothing"
    if present is None:
        before_new()
    else:
        if present not in released:
            _require_only_added(present, released[HEAD], found)
            return None
        variants = heal.recognise(released[present], found)
        compare(present, released[present], heal.healed(found, variants))
        if present == HEAD and not variants:
            return None
        came_from = f"an unfinished {present}" if variants else present
        heal.heal(connection, variants)
    if present != HEAD:
        from alembic import command  # slow to import, and mostly not needed

        command.upgrade(alembic_config(connection), "head")
    compare(HEAD, released[HEAD], shape.ours(shape.describe(connection)))
    return came_from


def _require_only_added(present: str, known: shape.Shape, found: shape.Shape) -> None:
    """Let this vpsd work with a later one's schema, or refuse it."""
    hurting = shape.hurts(known, found)
    if hurting:
        raise Misconfigured(
            f"the database has schema {present}, made by a later version, and this vpsd, of schema {HEAD}, cannot work "
            f"with it: {shape.differences(known, known - hurting | found & hurting)}. "
            "Nothing was changed; start that version, or restore a backup from before it."
        )
    log.warning("the database has schema %s, made by a later version, which adds to %s: working with it", present, HEAD)


def version(connection: Connection, found: shape.Shape) -> str | None:
    """The revision of a database, None of an empty one; raises `Misconfigured` for another program's."""
    if inspect(connection).has_table("alembic_version"):
        version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if version is not None:
            return str(version)
    others = shape.tables(found) - _COMPANIONS
    if others:
        raise Misconfigured(
            f"the database holds tables that are not vpsd's ({', '.join(sorted(others)[:5])}). Nothing "
            "was changed; point VPSD_DATABASE_URL or VPSD_DATA_DIR to an empty one."
        )
    return None


def compare(revision: str, wanted: shape.Shape, found: shape.Shape) -> None:
    """Refuse what is not as its revision says: the code would fail on it, sooner or later."""
    if found != wanted:
        raise Misconfigured(
            f"the database says that it has schema {revision}, and differs from it: "
            f"{shape.differences(wanted, found)}. Nothing was changed; undo by hand what was changed by hand, or "
            "restore a backup from before it."
        )


def revisions(config: Any) -> list[str]:
    """Those that there are migrations to, first to last."""
    from alembic.script import ScriptDirectory

    return [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def alembic_config(connection: Connection) -> Any:
    """What alembic needs to know; there is no file of it."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "vpsd:migrations")
    config.attributes["connection"] = connection
    return config


def all_tables() -> MetaData:
    """The metadata with the tables of every room's `models` in it."""
    for module in pkgutil.walk_packages(vpsd.__path__, "vpsd."):
        if module.name.endswith(".models"):
            import_module(module.name)
    return metadata
