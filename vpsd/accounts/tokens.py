"""Tokens: who may knock, and what for. A value is shown once; what is stored is its hash."""

import hmac
from collections.abc import Collection
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from sqlalchemy import and_, bindparam, func, insert, or_, select, update

from vpsd.accounts import events
from vpsd.accounts.models import Actor, Caller, Token, accounts, people, tokens
from vpsd.accounts.permissions import KNOWN, Role, unknown
from vpsd.core.clock import Clock, iso_utc
from vpsd.core.db import Statement, Tx
from vpsd.core.forms import Form
from vpsd.core.ids import Ids, token_hash
from vpsd.core.pages import Page
from vpsd.errors import Forbidden, Invalid, NotFound, Unauthenticated

_USED_EVERY_MS = 60_000  # how exactly the last use is noted
_LOOKUP_DIGITS = 16
_DAY_MS = 86_400_000
_LONGEST_DAYS = 3660

_CALLER = Statement(
    select(
        *(tokens.c.hash, tokens.c.account_id, tokens.c.id, tokens.c.permissions, people.c.role),
        *(tokens.c.expires_at_ms, tokens.c.last_used_at_ms),
    )
    .select_from(tokens.outerjoin(people, people.c.id == tokens.c.person_id))
    .where(tokens.c.lookup == bindparam("the_lookup"), tokens.c.revoked_at_ms.is_(None))
)
_USED = Statement(
    update(tokens).where(
        tokens.c.id == bindparam("the_id"),
        or_(tokens.c.last_used_at_ms.is_(None), tokens.c.last_used_at_ms < bindparam("the_time")),
    ),
    ("last_used_at_ms",),
)
_COLUMNS = (
    *(tokens.c.id, tokens.c.uuid, accounts.c.name, people.c.email, tokens.c.name, tokens.c.permissions),
    *(tokens.c.created_at_ms, tokens.c.expires_at_ms, tokens.c.last_used_at_ms, tokens.c.revoked_at_ms),
)
_LIST = (
    select(*_COLUMNS)
    .select_from(tokens.join(accounts).outerjoin(people, people.c.id == tokens.c.person_id))
    .order_by(tokens.c.id)
)
_OWN = and_(tokens.c.account_id == bindparam("the_account"), tokens.c.revoked_at_ms.is_(None))
_EVERY = Statement(_LIST)
_PAGE = Statement(_LIST.where(_OWN).limit(bindparam("the_limit")).offset(bindparam("the_offset")))
_COUNT = Statement(select(func.count()).select_from(tokens).where(_OWN))
_ONE = Statement(_LIST.where(tokens.c.id == bindparam("the_id")))
_ADD = Statement(
    insert(tokens).returning(tokens.c.id),
    ("uuid", "account_id", "person_id", "name", "lookup", "hash", "permissions", "created_at_ms", "expires_at_ms"),
)
_STILL_VALID = Statement(
    select(tokens.c.person_id, tokens.c.expires_at_ms)
    .where(tokens.c.id == bindparam("the_id"), tokens.c.revoked_at_ms.is_(None))
    .with_for_update(key_share=True)
)
_ACCOUNT_OF = Statement(
    select(tokens.c.account_id).where(tokens.c.id == bindparam("the_id"), tokens.c.revoked_at_ms.is_(None))
)
_REVOKE = Statement(
    update(tokens).where(tokens.c.id == bindparam("the_id"), tokens.c.revoked_at_ms.is_(None)), ("revoked_at_ms",)
)
_ANY = Statement(select(func.count()).select_from(tokens))

Permission = Annotated[
    str,
    Meta(
        description=f"One of {', '.join(KNOWN)}",
        max_length=32,
        examples=["servers:read"],
        extra={"message": "Give a list of permissions."},
    ),
]


class TokenCreate(msgspec.Struct, forbid_unknown_fields=True):
    """A token to make."""

    name: Annotated[str, Meta(min_length=1, max_length=255, description="What it is for", examples=["backup-script"])]
    permissions: Annotated[list[Permission], Meta(min_length=1, max_length=32, description="What it may do")]
    expires_in_days: Annotated[
        Annotated[int, Meta(ge=1, le=_LONGEST_DAYS, extra={"message": f"Give whole days, 1 to {_LONGEST_DAYS}."})]
        | None,
        Meta(description="Days until it is worthless by itself; null: never"),
    ] = None


class _Found(msgspec.Struct, frozen=True):
    hash: str
    account_id: int
    token_id: int
    permissions: str
    role: str | None
    expires_at_ms: int | None
    last_used_at_ms: int | None


class Login(msgspec.Struct, frozen=True):
    """A caller, and whether the use of the token is to be noted."""

    caller: Caller
    note_use: bool


async def authenticate(tx: Tx, clock: Clock, token: str, address: str | None, request_id: str | None) -> Login:
    """Find who a token speaks for; raises `Unauthenticated`.

    The database looks for 64 bits of the hash; the whole is compared here, in constant time.
    """
    digest = token_hash(token)
    now = clock.now_ms()
    for found in await tx.all(_Found, _CALLER, the_lookup=digest[:_LOOKUP_DIGITS]):
        if not hmac.compare_digest(found.hash, digest):
            continue
        if found.expires_at_ms is not None and found.expires_at_ms <= now:
            raise Unauthenticated("This token has expired. Make a new one.")
        caller = Caller(
            account_id=found.account_id,
            token_id=found.token_id,
            permissions=frozenset(found.permissions.split()),
            role=None if found.role is None else Role(found.role),
            address=address,
            request_id=request_id,
        )
        return Login(caller, found.last_used_at_ms is None or found.last_used_at_ms < now - _USED_EVERY_MS)
    raise Unauthenticated("This token is not valid. Check that it was copied whole and was not revoked.")


async def note_use(tx: Tx, clock: Clock, token_id: int) -> None:
    """Note that a token was used, at most once a minute."""
    now = clock.now_ms()
    await tx.run(_USED, the_id=token_id, the_time=now - _USED_EVERY_MS, last_used_at_ms=now)


def _token(*row: Any) -> Token:
    values = list(row)
    values[5] = values[5].split()
    return Token(*values)


async def list_all(tx: Tx) -> list[Token]:
    """The tokens of all accounts, oldest first, revoked ones included; never their values."""
    return await tx.all(_token, _EVERY)


async def list_tokens(tx: Tx, account_id: int, page: Page) -> tuple[int, list[Token]]:
    """How many tokens an account has that were not revoked, and a page of them, oldest first."""
    count = await tx.first(int, _COUNT, the_account=account_id)
    return count or 0, await tx.all(_token, _PAGE, the_account=account_id, the_limit=page.size, the_offset=page.offset)


async def get(tx: Tx, token_id: int) -> Token:
    """A token that must exist."""
    token = await tx.first(_token, _ONE, the_id=token_id)
    assert token is not None
    return token


async def add(
    tx: Tx,
    ids: Ids,
    clock: Clock,
    actor: Actor,
    name: str,
    permissions: Collection[str] = ("*:*",),
    *,
    expires_in_days: int | None = None,
    person_id: int | None = None,
) -> tuple[int, str]:
    """Make a token for the actor's account: its id and its value, which is to be seen only now.

    Raises `Invalid` for permissions that there are not.
    """
    if not permissions or unknown(permissions):
        raise Invalid({"permissions": [f"{', '.join(unknown(permissions)) or 'Nothing'}: give some of {_ALL}."]})
    if not 0 < len(name) <= 255 or not name.isprintable():
        raise Invalid({"name": ["Give a name of 1 to 255 printable characters."]})
    if expires_in_days is not None and not 0 < expires_in_days <= _LONGEST_DAYS:
        raise Invalid({"expires_in_days": [f"Give whole days, 1 to {_LONGEST_DAYS}."]})
    token, now = ids.token(), clock.now_ms()
    digest = token_hash(token)
    token_id = await tx.first(
        int,
        _ADD,
        uuid=ids.uuid(),
        account_id=actor.account_id,
        person_id=person_id,
        name=name,
        lookup=digest[:_LOOKUP_DIGITS],
        hash=digest,
        permissions=" ".join(dict.fromkeys(permissions)),
        created_at_ms=now,
        expires_at_ms=None if expires_in_days is None else now + expires_in_days * _DAY_MS,
    )
    assert token_id is not None
    await events.add(tx, clock, actor, "token.create", "token", token_id, f"{name}: {' '.join(permissions)}")
    return token_id, token


_ALL = ", ".join(KNOWN)


async def create(tx: Tx, caller: Caller, ids: Ids, clock: Clock, form: Form[TokenCreate]) -> tuple[int, str]:
    """Make a token for the caller, who can hand on no more than they hold.

    Raises `Invalid`, and `Forbidden` that names the permission that the caller lacks.
    """
    wanted: list[str] = form.get("permissions", [])
    if unknown(wanted):
        form.wrong("permissions", f"There is no {', '.join(unknown(wanted))}. The permissions are {_ALL}.")
    form.done()
    for permission in wanted:
        if not caller.may(permission):
            raise Forbidden(f"This token lacks the permission {permission}, so it cannot hand it on.")
    days = form.get("expires_in_days")
    # Read again and kept: the token may have been revoked since the request began.
    valid = await tx.first(lambda *row: row, _STILL_VALID, the_id=caller.token_id)
    if valid is None:
        raise Unauthenticated("This token is not valid any more.")
    person_id, expires_at_ms = valid
    if expires_at_ms is not None and (days is None or clock.now_ms() + days * _DAY_MS > expires_at_ms):
        most = max(0, (expires_at_ms - clock.now_ms()) // _DAY_MS)
        text = f"This token ends at {iso_utc(expires_at_ms)}, and one that it makes cannot outlive it: at most {most}."
        raise Invalid({"expires_in_days": [text]})
    return await add(tx, ids, clock, caller, form.get("name"), wanted, expires_in_days=days, person_id=person_id)


async def revoke(tx: Tx, clock: Clock, actor: Actor, token_id: int) -> None:
    """Make a token of the actor's account worthless from now on; raises `NotFound`."""
    if await tx.first(int, _ACCOUNT_OF, the_id=token_id) != actor.account_id:
        raise NotFound(f"There is no token {token_id}.")
    await tx.run(_REVOKE, the_id=token_id, revoked_at_ms=clock.now_ms())
    await events.add(tx, clock, actor, "token.revoke", "token", token_id)


async def account_of(tx: Tx, token_id: int) -> int:
    """The account of a token that is not revoked; raises `NotFound`."""
    found = await tx.first(int, _ACCOUNT_OF, the_id=token_id)
    if found is None:
        raise NotFound(f"There is no valid token {token_id}; `vpsd token list` shows them.")
    return found


async def any_token(tx: Tx) -> bool:
    """Whether a token was ever made."""
    return bool(await tx.first(int, _ANY))
