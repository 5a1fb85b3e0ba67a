"""Claims a key, and stores the answer in the same transaction as the effect of the request.

If a process dies in between, its claim has neither answer nor effect: once the lease has expired, or at once where the
next process knows that it is alone, the next request with the key is executed. A claim that was taken over meanwhile
can no longer be finished, and its effect is rolled back.

Answers may contain secrets that are shown once (a root password, a token), so they are encrypted with a key derived
from the caller's token: they cannot be read from the database alone.
"""

import hashlib
import hmac
import os
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from vpsd.core.clock import lies_ahead
from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.core.units import HOUR_MS
from vpsd.errors import KeyReused, StillRunning
from vpsd.idempotency.models import Record, idempotency_keys

KEPT_HOURS = 24
# A request takes milliseconds; if it has not ended by then, its process most likely died. One that lives after all
# cannot finish, so nothing is done twice.
LEASE_SECONDS = 5

_c = idempotency_keys.c
_OWN = (_c.token_id == bindparam("token_id"), _c.key == bindparam("key"))
_UNANSWERED = (*_OWN, _c.owner == bindparam("present_owner"), _c.answer.is_(None))
_RECORD = Statement(
    select(_c.fingerprint, _c.owner, _c.lease_until_ms, _c.status_code, _c.answer).where(*_OWN), into=Record
)
_ADD = Statement(
    insert(idempotency_keys), ("token_id", "key", "fingerprint", "owner", "lease_until_ms", "created_at_ms")
)
_TAKE_OVER = Statement(update(idempotency_keys).where(*_UNANSWERED), ("owner", "lease_until_ms"))
_FINISH = Statement(
    update(idempotency_keys).where(*_OWN, _c.owner == bindparam("present_owner")), ("status_code", "answer")
)
_DROP = Statement(delete(idempotency_keys).where(*_UNANSWERED))
_END_CLAIMS = Statement(update(idempotency_keys).where(_c.answer.is_(None)), ("lease_until_ms",))
_FORGET = Statement(delete(idempotency_keys).where(_c.created_at_ms <= bindparam("created_before_ms")))


class Answer(msgspec.Struct, frozen=True):
    """The answer to the first request."""

    status_code: int
    body: bytes


class Claim(msgspec.Struct, frozen=True):
    """The right to execute a request; `secret` is the caller's token."""

    token_id: int
    key: str
    owner: str
    secret: str


async def claim(ctx: Ctx, secret: str, key: str, request: bytes, *, forgets: bool = True) -> Claim | Answer:
    """Claim a key of the actor's token for a request, or return the answer to an earlier one.

    `forgets` is False while the clock may be wrong about what is a day old: what was forgotten would be done again.
    Raises `KeyReused` if that was a different request, `StillRunning` if it has not ended yet.
    """
    token_id, now = ctx.actor.token_id, ctx.now_ms
    assert token_id is not None
    fingerprint = hmac.new(secret.encode(), request, hashlib.sha256).hexdigest()
    if forgets:
        await forget(ctx)
    found = await ctx.tx.first(_RECORD, token_id=token_id, key=key)
    mine = Claim(token_id, key, ctx.ids.uuid(), secret)
    lease_until_ms = now + LEASE_SECONDS * 1000
    if found is None:
        try:
            await ctx.tx.run(
                _ADD,
                token_id=token_id,
                key=key,
                fingerprint=fingerprint,
                owner=mine.owner,
                lease_until_ms=lease_until_ms,
                created_at_ms=now,
            )
        except UniqueViolation:
            raise StillRunning from None
        return mine
    if not hmac.compare_digest(found.fingerprint, fingerprint):
        raise KeyReused
    if found.answer is not None and found.status_code is not None:
        return Answer(found.status_code, _decrypt(mine, found.answer))
    if lies_ahead(found.lease_until_ms, now, LEASE_SECONDS * 1000) or not await ctx.tx.run(
        _TAKE_OVER,
        token_id=token_id,
        key=key,
        present_owner=found.owner,
        owner=mine.owner,
        lease_until_ms=lease_until_ms,
    ):
        raise StillRunning
    return mine


async def end_claims(ctx: Ctx) -> None:
    """Let every unanswered request be executed anew; only for a process that knows that all others are dead."""
    await ctx.tx.run(_END_CLAIMS, lease_until_ms=0)


async def forget(ctx: Ctx) -> None:
    """Delete expired keys."""
    await ctx.tx.run(_FORGET, created_before_ms=ctx.now_ms - KEPT_HOURS * HOUR_MS)


async def finish(ctx: Ctx, mine: Claim, answer: Answer) -> None:
    """Store the answer, in the transaction of the effect; raises `StillRunning` if another took the key over."""
    if not await ctx.tx.run(
        _FINISH,
        **_held(mine),
        status_code=answer.status_code,
        answer=_encrypt(mine, answer.body),
    ):
        raise StillRunning


async def drop(ctx: Ctx, mine: Claim) -> None:
    """Release the key of a request that was refused: it changed nothing, and may be repeated."""
    await ctx.tx.run(_DROP, **_held(mine))


def _held(mine: Claim) -> dict[str, Any]:
    return {"token_id": mine.token_id, "key": mine.key, "present_owner": mine.owner}


_NONCE_BYTES = 12


def _cipher(mine: Claim) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # slow to import, and not every process needs it

    return AESGCM(hmac.new(mine.secret.encode(), b"vpsd idempotency " + mine.key.encode(), hashlib.sha256).digest())


def _encrypt(mine: Claim, body: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    encrypted: bytes = _cipher(mine).encrypt(nonce, body, None)
    return nonce + encrypted


def _decrypt(mine: Claim, encrypted: bytes) -> bytes:
    body: bytes = _cipher(mine).decrypt(encrypted[:_NONCE_BYTES], encrypted[_NONCE_BYTES:], None)
    return body
