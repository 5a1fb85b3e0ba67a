"""Claim a key, carry the request out, and keep its answer in the transaction of its effect.

Dying between the two leaves a claim without an answer and without an effect: when its lease has run out, the next
request with the key carries it out. A claim that was taken over meanwhile cannot be finished any more, and its effect
is undone.

Answers may hold secrets that are shown once (a root password, a token), so they are sealed with a key that is made of
the caller's own token: whoever has the database alone cannot open them.
"""

import hashlib
import hmac
import os
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.core.ids import Ids
from vpsd.errors import KeyReused, StillRunning
from vpsd.idempotency.models import Record, idempotency_keys

KEPT_HOURS = 24
LEASE_SECONDS = 60  # a request takes milliseconds; one that has not answered by then died

_c = idempotency_keys.c
_OWN = (_c.token_id == bindparam("the_token"), _c.key == bindparam("the_key"))
_RECORD = Statement(select(_c.fingerprint, _c.owner, _c.lease_until_ms, _c.status_code, _c.answer).where(*_OWN))
_ADD = Statement(
    insert(idempotency_keys), ("token_id", "key", "fingerprint", "owner", "lease_until_ms", "created_at_ms")
)
_TAKE_OVER = Statement(
    update(idempotency_keys).where(*_OWN, _c.owner == bindparam("the_owner"), _c.answer.is_(None)),
    ("owner", "lease_until_ms"),
)
_FINISH = Statement(
    update(idempotency_keys).where(*_OWN, _c.owner == bindparam("the_owner")), ("status_code", "answer")
)
_DROP = Statement(delete(idempotency_keys).where(*_OWN, _c.owner == bindparam("the_owner"), _c.answer.is_(None)))
_FORGET = Statement(delete(idempotency_keys).where(_c.created_at_ms <= bindparam("the_time")))


class Answer(msgspec.Struct, frozen=True):
    """What the first request was answered."""

    status_code: int
    body: bytes


class Claim(msgspec.Struct, frozen=True):
    """The right to carry a request out; `secret` is the caller's token."""

    token_id: int
    key: str
    owner: str
    secret: str


async def claim(tx: Tx, ids: Ids, clock: Clock, token_id: int, secret: str, key: str, request: bytes) -> Claim | Answer:
    """Take a key for a request, or get the answer that it was given before.

    Raises `KeyReused` for another request, `StillRunning` while the first has not ended.
    """
    now = clock.now_ms()
    fingerprint = hmac.new(secret.encode(), request, hashlib.sha256).hexdigest()
    await forget(tx, clock)
    found = await tx.first(Record, _RECORD, the_token=token_id, the_key=key)
    mine = Claim(token_id, key, ids.uuid(), secret)
    lease_until_ms = now + LEASE_SECONDS * 1000
    if found is None:
        try:
            await tx.run(
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
        return Answer(found.status_code, _opened(mine, found.answer))
    if found.lease_until_ms > now or not await tx.run(
        _TAKE_OVER,
        the_token=token_id,
        the_key=key,
        the_owner=found.owner,
        owner=mine.owner,
        lease_until_ms=lease_until_ms,
    ):
        raise _still_running()
    return mine


async def forget(tx: Tx, clock: Clock) -> None:
    """Let go of keys that have had their time."""
    await tx.run(_FORGET, the_time=clock.now_ms() - KEPT_HOURS * 3_600_000)


def _still_running() -> StillRunning:
    return StillRunning(
        "The first request with this Idempotency-Key is still being carried out. Ask again in a moment."
    )


async def finish(tx: Tx, mine: Claim, answer: Answer) -> None:
    """Keep the answer, in the transaction of the effect; raises `StillRunning` when another has taken the key over."""
    sealed = _sealed(mine, answer.body)
    if not await tx.run(
        _FINISH,
        the_token=mine.token_id,
        the_key=mine.key,
        the_owner=mine.owner,
        status_code=answer.status_code,
        answer=sealed,
    ):
        raise _still_running()


async def drop(tx: Tx, mine: Claim) -> None:
    """Free the key of a request that was refused: it changed nothing and may be tried again."""
    await tx.run(_DROP, the_token=mine.token_id, the_key=mine.key, the_owner=mine.owner)


_NONCE_BYTES = 12


def _cipher(mine: Claim) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # slow to import, and not every process needs it

    return AESGCM(hmac.new(mine.secret.encode(), b"vpsd idempotency " + mine.key.encode(), hashlib.sha256).digest())


def _sealed(mine: Claim, body: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    encrypted: bytes = _cipher(mine).encrypt(nonce, body, None)
    return nonce + encrypted


def _opened(mine: Claim, sealed: bytes) -> bytes:
    body: bytes = _cipher(mine).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    return body
