"""A database that is away, full, locked or read-only: one failure for both drivers, noted, and logged now and then.

Result codes: https://sqlite.org/rescode.html, https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum, StrEnum

import asyncpg

from vpsd.errors import DatabaseUnavailable, OutcomeUnknown

log = logging.getLogger(__name__)


class UniqueViolation(Exception):
    """A row with these unique values is there already; the transaction is lost."""


class Problem(StrEnum):
    """What is wrong with a database, in a word."""

    UNAVAILABLE = "unavailable"  # it does not answer, or is closed
    LOCKED = "locked"  # somebody else keeps others from writing
    READ_ONLY = "read_only"
    FULL = "full"
    FAILING = "failing"  # its storage has errors, or what is stored is damaged


class Evidence(IntEnum):
    """What a transaction that went well proves: each also what those above it do."""

    ANSWERED = 0
    BEGUN = 1  # it was one for writing: nobody locks others out
    CHANGED = 2  # and has changed something


_DISPROVED_BY = {
    Problem.UNAVAILABLE: Evidence.ANSWERED,
    Problem.LOCKED: Evidence.BEGUN,
    Problem.READ_ONLY: Evidence.CHANGED,
    Problem.FULL: Evidence.CHANGED,
    Problem.FAILING: Evidence.CHANGED,
}
_SQLITE = {
    sqlite3.SQLITE_BUSY: Problem.LOCKED,
    sqlite3.SQLITE_LOCKED: Problem.LOCKED,
    sqlite3.SQLITE_PROTOCOL: Problem.LOCKED,
    sqlite3.SQLITE_READONLY: Problem.READ_ONLY,
    sqlite3.SQLITE_FULL: Problem.FULL,
    sqlite3.SQLITE_IOERR: Problem.FAILING,
    sqlite3.SQLITE_CORRUPT: Problem.FAILING,
    sqlite3.SQLITE_NOTADB: Problem.FAILING,
    sqlite3.SQLITE_CANTOPEN: Problem.UNAVAILABLE,
    sqlite3.SQLITE_PERM: Problem.UNAVAILABLE,
}
_POSTGRES = {  # by SQLSTATE, or its first two characters
    "08": Problem.UNAVAILABLE,  # connection exceptions
    "53100": Problem.FULL,
    "53": Problem.UNAVAILABLE,  # too many connections, out of memory
    "57014": Problem.UNAVAILABLE,  # cancelled, by a time limit of the server's
    "57P": Problem.UNAVAILABLE,  # it is shut down, starting, or the database was dropped
    "58": Problem.FAILING,
    "XX001": Problem.FAILING,
    "XX002": Problem.FAILING,
    "25006": Problem.READ_ONLY,  # a standby
    "40001": Problem.UNAVAILABLE,  # a standby that recovers has cancelled a query; vpsd runs nothing serializable
    "40003": Problem.UNAVAILABLE,
    "55P03": Problem.LOCKED,
}
_LOST = (" is closed", " is closing", "released back to the pool")  # which happens to a connection that was lost
_AT_MOST_EVERY_SECONDS = 1.0
_AGAIN_AFTER_SECONDS = 60.0  # while it lasts
_PROBE_SECONDS = 1.0


@contextmanager
def translated(*, connecting: bool = False, committing: bool = False) -> Iterator[None]:
    """Around a call of a driver, and nothing else: raises `UniqueViolation`, `DatabaseUnavailable`, `OutcomeUnknown`.

    Anything else that a driver raises is an error of vpsd's own, and stays what it is.
    """
    try:
        yield
    except (
        sqlite3.Error,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,
        OSError,
    ) as error:
        if _is_unique_violation(error):
            raise UniqueViolation(str(error)) from error
        problem = _problem_of(error, connecting=connecting)
        if problem is None:
            raise
        reason = f"{error}" or type(error).__name__
        if committing and _leaves_open(error):
            raise OutcomeUnknown(problem, reason) from error
        raise DatabaseUnavailable(problem, reason) from error


def _is_unique_violation(error: Exception) -> bool:
    if isinstance(error, sqlite3.IntegrityError):
        return error.sqlite_errorcode in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
    return isinstance(error, asyncpg.UniqueViolationError)


def _problem_of(error: Exception, *, connecting: bool) -> Problem | None:
    if isinstance(error, sqlite3.Error):
        if str(error) == "Cannot operate on a closed database.":
            return Problem.UNAVAILABLE
        return _SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    # The driver's own confusion is what a server that hangs up between two statements leads to.
    if isinstance(error, OSError | asyncpg.InternalClientError) or connecting:
        return Problem.UNAVAILABLE
    if isinstance(error, asyncpg.InterfaceError):  # also what is called wrongly
        return Problem.UNAVAILABLE if any(text in str(error) for text in _LOST) else None
    state = str(getattr(error, "sqlstate", None))
    return _POSTGRES.get(state) or _POSTGRES.get(state[:3]) or _POSTGRES.get(state[:2])


def _leaves_open(error: Exception) -> bool:
    """Whether a COMMIT that failed like this may have been carried out all the same.

    SQLite may have written it whole, and failed while it made sure; PostgreSQL may have died, or have been cut off,
    between committing and saying so. What PostgreSQL refuses, and what SQLite has no space for, is undone.
    """
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith(("08", "57", "40003"))
    return True


class DatabaseStatus:
    """How the database is, as far as the last transactions have found: for /health, and for the log.

    The log has a line when something is wrong, at most one a second, one a minute while it lasts, and one when it is
    over; each with the number of failures that it stands for.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.problem: Problem | None = None
        self._monotonic = monotonic
        self._failures = 0  # since the last line
        self._said: Problem | None = None
        self._said_at = self._probed_at = float("-inf")

    @contextmanager
    def noting(self, *, patient: bool = True) -> Iterator[None]:
        """Note what fails in this block because of the database; that somebody did not care to wait says nothing."""
        try:
            yield
        except DatabaseUnavailable as error:
            if patient or error.problem not in (Problem.LOCKED, Problem.UNAVAILABLE):
                self.failed(error)
            raise

    def failed(self, error: DatabaseUnavailable) -> None:
        """Something failed because of the database."""
        self.problem = Problem(error.problem)
        self._failures += 1
        since_seconds = self._monotonic() - self._said_at
        if since_seconds >= (_AGAIN_AFTER_SECONDS if self._said is self.problem else _AT_MOST_EVERY_SECONDS):
            log.error("the database is %s (failures: %s): %s", self.problem, self._failures, error.reason)
            self._said, self._said_at, self._failures = self.problem, self._monotonic(), 0

    def answered(self, evidence: Evidence) -> None:
        """A transaction went well."""
        if self.problem is None or evidence < _DISPROVED_BY[self.problem]:
            return
        if self._said is not None:
            log.warning("the database is well again (failures since the last line: %s)", self._failures)
        self.problem, self._said, self._failures = None, None, 0

    def take_probe(self) -> bool:
        """Whether somebody may find out if it is well again: while something is wrong, once a second."""
        if self.problem is None or self._monotonic() - self._probed_at < _PROBE_SECONDS:
            return False
        self._probed_at = self._monotonic()
        return True
