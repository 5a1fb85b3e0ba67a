"""What every service is handed: the transaction, who acts in it, the clock, ids and settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from vpsd.core.clock import Clock
from vpsd.core.db import WAIT_SECONDS, Database, Tx, rolled_back
from vpsd.core.ids import Ids
from vpsd.settings import Settings

ACTORS = ("token", "operator", "vpsd")


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """Who does something, and in which account; 0 is none, for what concerns all accounts."""

    kind: str  # one of ACTORS
    account_id: int = 0
    token_id: int | None = None
    address: str | None = None
    request_id: str | None = None


SYSTEM = Actor(kind="vpsd")
OPERATOR = Actor(kind="operator")


class Ctx(msgspec.Struct, frozen=True):
    """One transaction and what belongs to it. Whoever opened it commits it; services never do."""

    tx: Tx
    actor: Actor
    clock: Clock
    ids: Ids
    settings: Settings

    @property
    def now_ms(self) -> int:
        """Milliseconds since 1970 in UTC."""
        return self.clock.now_ms()

    @property
    def account_id(self) -> int:
        """The account that is acted in; queries are scoped to it."""
        return self.actor.account_id

    def in_account(self, account_id: int) -> "Ctx":
        """The same transaction, in an account: the operator stays the operator, anybody else acts as vpsd itself.

        Whoever acts in that account already stays who they are.
        """
        if account_id == self.account_id:
            return self
        kind = "operator" if self.actor.kind == "operator" else "vpsd"
        return msgspec.structs.replace(self, actor=Actor(kind=kind, account_id=account_id))


class Transactions(msgspec.Struct, frozen=True, kw_only=True):
    """Opens transactions. What is done in one is done whole or not at all."""

    database: Database
    clock: Clock
    ids: Ids
    settings: Settings

    @asynccontextmanager
    async def read(self, actor: Actor = SYSTEM, *, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[Ctx]:
        """Read without a lock; every statement sees what is committed.

        `wait_seconds` is how long it may wait for a connection; a shorter time than usual is also the statements'.
        """
        async with self.database.read(wait_seconds) as tx:
            yield self._ctx(tx, actor)

    @asynccontextmanager
    async def write(
        self, actor: Actor = SYSTEM, *, wait_seconds: float = WAIT_SECONDS, together: bool = False
    ) -> AsyncIterator[Ctx]:
        """A transaction: committed at the end of the block, undone when it raises.

        `wait_seconds` is how long it may wait to begin. `together`: it may wait for others that are ready to write, and
        be committed with them.
        """
        async with self.database.write(wait_seconds, together=together) as tx:
            yield self._ctx(tx, actor)

    @asynccontextmanager
    async def snapshot(self, actor: Actor = SYSTEM) -> AsyncIterator[Ctx]:
        """Read everything as it was at one moment, without keeping others from writing."""
        async with self.database.snapshot() as tx:
            yield self._ctx(tx, actor)

    @asynccontextmanager
    async def rolled_back(self, actor: Actor = SYSTEM) -> AsyncIterator[Ctx]:
        """A transaction that is undone at its end: it sees what it does, and nobody else ever will."""
        async with rolled_back(self.database) as tx:
            yield self._ctx(tx, actor)

    def _ctx(self, tx: Tx, actor: Actor) -> Ctx:
        return Ctx(tx, actor, self.clock, self.ids, self.settings)
