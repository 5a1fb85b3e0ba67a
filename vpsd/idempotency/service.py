"""Claim a key, execute the request, and keep its answer in the transaction of its effect.

Dying between the two leaves a claim without an answer and without an effect: when its lease has run out, the next
request with the key executes it. A claim that was taken over meanwhile cannot be finished any more, and its effect is
undone.

Answers may hold secrets that are shown once (a root password, a token), so they are encrypted with a key that is made
of the caller's own token: whoever has the database alone cannot read them.
"""

import hashlib
import hmac
import os
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.errors import KeyReused, StillRunning
from vpsd.idempotency.models import Record, idempotency_keys

KEPT_HOURS = 24
LEASE_SECONDS = 60  # a request takes milliseconds; one that has not answered by then died

_c = idempotency_keys.c
_OWN = (_c.token_id == bindparam("token"), _c.key == bindparam("used_key"))
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
_FORGET = Statement(delete(idempotency_keys).where(_c.created_at_ms <= bindparam("created_before_ms")))


class Answer(msgspec.Struct, frozen=True):
    """What the first request was answered."""

    status_code: int
    body: bytes


class Claim(msgspec.Struct, frozen=True):
    """The right to execute a request; `secret` is the caller's token."""

    token_id: int
    key: str
    owner: str
    secret: str


async def claim(ctx: Ctx, secret: str, key: str, request: bytes) -> Claim | Answer:
    """Take a key of the actor's token for a request, or get the answer that it was given before.

    Raises `KeyReused` for another request, `StillRunning` while the first has not ended.
    """
    token_id, now = ctx.actor.token_id, ctx.now_ms
    assert token_id is not None
    fingerprint = hmac.new(secret.encode(), request, hashlib.sha256).hexdigest()
    await forget(ctx)
    found = await ctx.tx.first(_RECORD, token=token_id, used_key=key)
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
            raise _still_running() from None
        return mine
    if not hmac.compare_digest(found.fingerprint, fingerprint):
        raise KeyReused("This Idempotency-Key came with another request before. Use a new key for a new request.")
    if found.answer is not None and found.status_code is not None:
        return Answer(found.status_code, _decrypt(mine, found.answer))
    if found.lease_until_ms > now or not await ctx.tx.run(
        _TAKE_OVER,
        token=token_id,
        used_key=key,
        present_owner=found.owner,
        owner=mine.owner,
        lease_until_ms=lease_until_ms,
    ):
        raise _still_running()
    return mine


async def forget(ctx: Ctx) -> None:
    """Delete the keys whose time is over."""
    await ctx.tx.run(_FORGET, created_before_ms=ctx.now_ms - KEPT_HOURS * 3_600_000)


def _still_running() -> StillRunning:
    return StillRunning("The first request with this Idempotency-Key is still in progress. Try again in a moment.")


async def finish(ctx: Ctx, mine: Claim, answer: Answer) -> None:
    """Keep the answer, in the transaction of the effect; raises `StillRunning` when another has taken the key over."""
    if not await ctx.tx.run(
        _FINISH,
        **_held(mine),
        status_code=answer.status_code,
        answer=_encrypt(mine, answer.body),
    ):
        raise _still_running()


async def drop(ctx: Ctx, mine: Claim) -> None:
    """Free the key of a request that was refused: it changed nothing and may be tried again."""
    await ctx.tx.run(_DROP, **_held(mine))


def _held(mine: Claim) -> dict[str, Any]:
    return {"token": mine.token_id, "used_key": mine.key, "present_owner": mine.owner}


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
