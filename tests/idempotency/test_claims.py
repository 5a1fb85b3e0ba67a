"""Claims: one request has the right to be executed, and only its caller's token opens the answer."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidTag

from tests.api.tables import change, rows
from tests.cloud import Cloud
from vpsd.core.context import Actor
from vpsd.core.db import Row, Statement, Tx
from vpsd.errors import KeyReused, StillRunning
from vpsd.idempotency import service
from vpsd.idempotency.models import idempotency_keys
from vpsd.idempotency.service import LEASE_SECONDS, Answer, Claim

Claims = Callable[..., Awaitable[Claim | Answer]]
SECRET = "vps_secret"
CALLER = Actor(kind="token", account_id=1, token_id=1)
ANSWER = Answer(201, b'{"password":"correct horse battery staple"}')


@pytest.fixture
def claims(cloud: Cloud) -> Claims:
    """Claims a key for a request, in a transaction of its own."""

    async def claim(key: str = "key", request: bytes = b"POST", secret: str = SECRET) -> Claim | Answer:
        async with cloud.runtime.write(CALLER) as ctx:
            return await service.claim(ctx, secret, key, request)

    return claim


async def _finish(cloud: Cloud, mine: Claim | Answer, answer: Answer = ANSWER) -> None:
    assert isinstance(mine, Claim)
    async with cloud.runtime.write(CALLER) as ctx:
        await service.finish(ctx, mine, answer)


async def test_an_answer_is_given_again_byte_for_byte(cloud: Cloud, claims: Claims) -> None:
    await _finish(cloud, await claims())
    assert await claims() == ANSWER
    with pytest.raises(KeyReused):
        await claims(request=b"another")


async def test_a_claim_lasts_as_long_as_its_lease_and_passes_to_one(cloud: Cloud, claims: Claims) -> None:
    first = await claims()
    cloud.clock.advance(LEASE_SECONDS - 0.001)
    with pytest.raises(StillRunning):
        await claims()
    cloud.clock.advance(0.001)
    second = await claims()
    with pytest.raises(StillRunning):  # the second has a lease of its own
        await claims()
    with pytest.raises(StillRunning):
        await _finish(cloud, first, Answer(201, b"late"))
    await _finish(cloud, second)
    assert await claims() == ANSWER


@pytest.mark.parametrize("seconds", [-3600, 7200])
async def test_a_claim_is_no_longer_than_its_lease_whatever_the_clock_is_set_to(
    cloud: Cloud, claims: Claims, seconds: int
) -> None:
    first = await claims()
    cloud.clock.jump(seconds)
    cloud.clock.advance(LEASE_SECONDS)
    await _finish(cloud, await claims())
    with pytest.raises(StillRunning):
        await _finish(cloud, first, Answer(201, b"late"))


async def test_a_process_that_is_alone_frees_what_dead_ones_claimed_and_keeps_what_was_answered(
    cloud: Cloud, claims: Claims
) -> None:
    await _finish(cloud, await claims("answered"))
    dead = await claims()
    async with cloud.writing() as ctx:
        await service.end_claims(ctx)
    await _finish(cloud, await claims())
    with pytest.raises(StillRunning):
        await _finish(cloud, dead, Answer(201, b"late"))
    assert await claims("answered") == ANSWER


async def test_who_was_taken_over_cannot_free_the_key(cloud: Cloud, claims: Claims) -> None:
    first = await claims()
    cloud.clock.advance(LEASE_SECONDS)
    await claims()
    assert isinstance(first, Claim)
    async with cloud.runtime.write(CALLER) as ctx:
        await service.drop(ctx, first)
    with pytest.raises(StillRunning):
        await claims()


async def test_an_answer_stays_whoever_would_drop_it(cloud: Cloud, claims: Claims) -> None:
    mine = await claims()
    await _finish(cloud, mine)
    assert isinstance(mine, Claim)
    async with cloud.runtime.write(CALLER) as ctx:
        await service.drop(ctx, mine)
    assert await claims() == ANSWER


class Together:
    """A transaction that waits for others when it has read its row."""

    def __init__(self, tx: Tx, others: asyncio.Barrier) -> None:
        self._tx = tx
        self._others = others
        self.run, self.all, self.many, self.notify = tx.run, tx.all, tx.many, tx.notify

    async def first(self, statement: Statement[Row], /, **values: Any) -> Row | None:
        found = await self._tx.first(statement, **values)
        await self._others.wait()
        return found


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite lets one in at a time
@pytest.mark.parametrize("old", [True, False])
async def test_of_two_processes_that_meet_at_a_key_one_has_it(cloud: Cloud, claims: Claims, old: bool) -> None:
    if old:
        await claims()
        cloud.clock.advance(LEASE_SECONDS)
    others = asyncio.Barrier(2)

    async def claim() -> Claim | Answer:
        async with cloud.runtime.write(CALLER) as ctx:
            together = msgspec.structs.replace(ctx, tx=Together(ctx.tx, others))
            return await service.claim(together, SECRET, "key", b"POST")

    taken = await asyncio.gather(claim(), claim(), return_exceptions=True)
    assert sorted(type(one).__name__ for one in taken) == ["Claim", "StillRunning"]


async def test_whoever_has_the_database_alone_cannot_open_an_answer(cloud: Cloud, claims: Claims) -> None:
    await _finish(cloud, await claims())
    (row,) = await rows(cloud.database, "idempotency_keys")
    assert b"horse" not in row["answer"]
    # Somebody who may write to it makes the request look like their own: the answer is encrypted for another.
    forged = hmac.new(b"vps_other", b"POST", hashlib.sha256).hexdigest()
    async with cloud.database.write() as tx:
        await change(tx, idempotency_keys, row["id"], fingerprint=forged)
    with pytest.raises(InvalidTag):
        await claims(secret="vps_other")


async def test_an_answer_that_was_moved_to_another_key_does_not_open(cloud: Cloud, claims: Claims) -> None:
    for key in ("one", "two"):
        await _finish(cloud, await claims(key), Answer(201, key.encode()))
    one, two = await rows(cloud.database, "idempotency_keys")
    async with cloud.database.write() as tx:
        await change(tx, idempotency_keys, one["id"], answer=two["answer"])
    with pytest.raises(InvalidTag):
        await claims("one")
    assert await claims("two") == Answer(201, b"two")


async def test_a_request_cannot_be_guessed_from_its_fingerprint(cloud: Cloud, claims: Claims) -> None:
    await claims("one")
    await claims("two", secret="vps_other")
    one, two = await rows(cloud.database, "idempotency_keys")
    assert one["fingerprint"] != two["fingerprint"]
    assert hashlib.sha256(b"POST").hexdigest() not in (one["fingerprint"], two["fingerprint"])


async def test_the_same_answer_is_encrypted_differently_each_time(cloud: Cloud, claims: Claims) -> None:
    for key in ("one", "two"):
        await _finish(cloud, await claims(key))
    one, two = await rows(cloud.database, "idempotency_keys")
    assert one["answer"][:12] != two["answer"][:12]
