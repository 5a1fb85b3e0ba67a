"""API tokens. The value of a token is shown once; only its hash is stored."""

import hmac
from collections.abc import Collection, Sequence

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import and_, bindparam, func, insert, or_, select, update

from vpsd.accounts.faults import (
    CannotHandOn,
    DaysOutOfRange,
    NotPrintable,
    Outlives,
    TooManyTokens,
    UnknownPermissions,
)
from vpsd.accounts.models import Caller, Token, accounts, people, tokens
from vpsd.accounts.permissions import Role, may, unknown
from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.core.ids import token_hash
from vpsd.core.pages import Page, PagedList, Part
from vpsd.core.units import DAY_MS, MINUTE_MS
from vpsd.errors import Invalid, NotFound, Unauthenticated
from vpsd.events import service as events
from vpsd.events.models import Event
from vpsd.events.models import events as event_table

LONGEST_DAYS = 3660

_USED_EVERY_MS = MINUTE_MS  # the last use is recorded at most this often
_LOOKUP_DIGITS = 16


class NewToken(msgspec.Struct, frozen=True):
    """A token to create; what was not sent or could not be read is unset. `expires_in_days` None: never."""

    name: str | UnsetType = UNSET
    permissions: list[str] | UnsetType = UNSET
    expires_in_days: int | UnsetType | None = UNSET


class NewTokenValue(msgspec.Struct, frozen=True):
    """A new token and its value, which is not stored."""

    id: int
    value: str


class Login(msgspec.Struct, frozen=True):
    """A caller, and whether the use of the token should be recorded."""

    caller: Caller
    record_use: bool


class _Found(msgspec.Struct, frozen=True):
    hash: str
    account_id: int
    token_id: int
    permissions: str
    role: str | None
    expires_at_ms: int | None
    last_used_at_ms: int | None


class _Maker(msgspec.Struct, frozen=True):
    """The token that creates another."""

    person_id: int | None
    expires_at_ms: int | None
    permissions: str
    role: str | None


class _Row(msgspec.Struct, frozen=True):
    """A `Token` as it is stored: permissions separated by spaces."""

    id: int
    uuid: str
    account: str
    person: str | None
    name: str
    permissions: str
    created_by: str
    parent_id: int | None
    parent: str | None
    created_at_ms: int
    expires_at_ms: int | None
    last_used_at_ms: int | None
    revoked_at_ms: int | None

    def token(self) -> Token:
        return Token(**{**msgspec.structs.asdict(self), "permissions": self.permissions.split()})


class _TokenName(msgspec.Struct, frozen=True):
    id: int
    name: str


_t = tokens.c
_OWN = _t.account_id == bindparam("account_id")
_VALID = and_(_OWN, _t.revoked_at_ms.is_(None))
_ID = _t.id == bindparam("id")
_with_people = tokens.outerjoin(people, people.c.id == _t.person_id)
_CALLER = Statement(
    select(
        *(_t.hash, _t.account_id, _t.id.label("token_id"), _t.permissions, people.c.role),
        *(_t.expires_at_ms, _t.last_used_at_ms),
    )
    .select_from(_with_people)
    .where(_t.lookup == bindparam("lookup"), _t.revoked_at_ms.is_(None)),
    into=_Found,
)
_USED = Statement(
    update(tokens).where(
        *(_OWN, _ID),
        or_(
            _t.last_used_at_ms.is_(None),
            _t.last_used_at_ms < bindparam("before_ms"),
            _t.last_used_at_ms > bindparam("now_ms"),
        ),
    ),
    ("last_used_at_ms",),
)
_parent = tokens.alias()
_ROWS = (
    select(
        *(_t.id, _t.uuid, accounts.c.name.label("account"), people.c.email.label("person"), _t.name, _t.permissions),
        *(_t.created_by, _t.parent_id, _parent.c.name.label("parent")),
        *(_t.created_at_ms, _t.expires_at_ms, _t.last_used_at_ms, _t.revoked_at_ms),
    )
    .select_from(
        tokens.join(accounts)
        .outerjoin(people, people.c.id == _t.person_id)
        .outerjoin(_parent, _parent.c.id == _t.parent_id)
    )
    .order_by(_t.id)
)
_ALL = Statement(_ROWS, into=_Row)
_COUNT = select(func.count()).select_from(tokens)
_LIST = PagedList(_ROWS.where(_VALID), _t.id, into=_Row, count=_COUNT.where(_VALID))
_IN_FORCE = Statement(
    _COUNT.where(_VALID, or_(_t.expires_at_ms.is_(None), _t.expires_at_ms > bindparam("now_ms"))), into=int
)
_LOCK_ACCOUNT = Statement(
    select(accounts.c.id).where(accounts.c.id == bindparam("account_id")).with_for_update(key_share=True), into=int
)
_ONE = Statement(_ROWS.where(_OWN, _ID), into=_Row)
_e = event_table.c
_NAMES = Statement(  # of the tokens in a page of events
    select(_t.id, _t.name)
    .join_from(event_table, tokens, _e.token_id == _t.id)
    .where(_e.account_id == bindparam("account_id"), _e.id >= bindparam("first_id"), _e.id <= bindparam("last_id"))
    .distinct(),
    into=_TokenName,
)
_family = select(_t.id).where(_OWN, _ID).cte("family", recursive=True)
_child = tokens.alias()
_family = _family.union(select(_child.c.id).join(_family, _child.c.parent_id == _family.c.id))
_FAMILY = Statement(
    select(_t.id).join(_family, _family.c.id == _t.id).where(_t.revoked_at_ms.is_(None)).order_by(_t.id), into=int
)
_ADD = Statement(
    insert(tokens).returning(_t.id),
    ("uuid", "account_id", "person_id", "name", "lookup", "hash", "permissions")
    + ("created_by", "parent_id", "created_at_ms", "expires_at_ms"),
    into=int,
)
_MAKER = Statement(
    select(_t.person_id, _t.expires_at_ms, _t.permissions, people.c.role)
    .select_from(_with_people)
    .where(_VALID, _ID)
    .with_for_update(key_share=True, of=tokens),
    into=_Maker,
)
_ACCOUNT_OF = Statement(select(_t.account_id).where(_ID), into=int)
_REVOKE = Statement(update(tokens).where(_VALID, _ID), ("revoked_at_ms",))
_ANY = Statement(_COUNT, into=int)


async def authenticate(ctx: Ctx, token: str, address: str | None, request_id: str | None) -> Login:
    """Find the caller of a token; raises `Unauthenticated`.

    The database compares 64 bits of the hash; all of it is compared here, in constant time.
    """
    digest, now = token_hash(token), ctx.now_ms
    for found in await ctx.tx.all(_CALLER, lookup=digest[:_LOOKUP_DIGITS]):
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
        used_ms = found.last_used_at_ms
        return Login(caller, used_ms is None or not now - _USED_EVERY_MS <= used_ms <= now)
    raise Unauthenticated("This token is not valid. Check that it was copied in full and was not revoked.")


async def record_use(ctx: Ctx, token_id: int) -> None:
    """Record that a token was used, at most once a minute."""
    now = ctx.now_ms
    times = {"before_ms": now - _USED_EVERY_MS, "now_ms": now, "last_used_at_ms": now}
    await ctx.tx.run(_USED, account_id=ctx.account_id, id=token_id, **times)


async def list_all(ctx: Ctx) -> list[Token]:
    """The tokens of all accounts, oldest first, including revoked ones; never their values."""
    return [row.token() for row in await ctx.tx.all(_ALL)]


async def list_tokens(ctx: Ctx, page: Page) -> Part[Token]:
    """How many tokens the account has that were not revoked, and a page of them, oldest first."""
    part = await _LIST.read(ctx, page)
    return Part(part.count, [row.token() for row in part.rows], part.end)


async def get(ctx: Ctx, token_id: int) -> Token:
    """A token of the account, revoked or not; raises `NotFound`."""
    row = await ctx.tx.first(_ONE, account_id=ctx.account_id, id=token_id)
    if row is None:
        raise NotFound("token", token_id)
    return row.token()


async def names(ctx: Ctx, page: Sequence[Event]) -> dict[int, str]:
    """The names by id of the tokens that a page of the account's events speaks of, including revoked ones."""
    ids = [event.id for event in page]
    span = {"first_id": min(ids, default=0), "last_id": max(ids, default=0)}
    return {token.id: token.name for token in await ctx.tx.all(_NAMES, account_id=ctx.account_id, **span)}


async def add(
    ctx: Ctx,
    name: str,
    permissions: Collection[str] = ("*:*",),
    *,
    expires_in_days: int | None = None,
    person_id: int | None = None,
) -> NewTokenValue:
    """Create a token for the account; raises `Invalid`."""
    if not permissions or unknown(permissions):
        raise Invalid({"permissions": [UnknownPermissions(unknown(permissions))]})
    if not 0 < len(name) <= 255 or not name.isprintable():
        raise Invalid({"name": [NotPrintable(1, 255)]})
    if expires_in_days is not None and not 0 < expires_in_days <= LONGEST_DAYS:
        raise Invalid({"expires_in_days": [DaysOutOfRange(LONGEST_DAYS)]})
    value, now = ctx.ids.token(), ctx.now_ms
    digest = token_hash(value)
    token_id = await ctx.tx.first(
        _ADD,
        uuid=ctx.ids.uuid(),
        account_id=ctx.account_id,
        person_id=person_id,
        name=name,
        lookup=digest[:_LOOKUP_DIGITS],
        hash=digest,
        permissions=" ".join(dict.fromkeys(permissions)),
        created_by=ctx.actor.kind,
        parent_id=ctx.actor.token_id,
        created_at_ms=now,
        expires_at_ms=None if expires_in_days is None else now + expires_in_days * DAY_MS,
    )
    assert token_id is not None
    await events.record(ctx, "token.create", "token", token_id, f"{name}: {' '.join(permissions)}")
    return NewTokenValue(token_id, value)


async def create(ctx: Ctx, new: NewToken, faults: Faults) -> NewTokenValue:
    """Create a token that can do no more, and lasts no longer, than the caller's own.

    Raises `Invalid`, `CannotHandOn`, `TooManyTokens`, or `Unauthenticated` if the caller's own token is no longer
    valid.
    """
    wanted = new.permissions or []
    if unknown(wanted):
        faults.add("permissions", UnknownPermissions(unknown(wanted)))
    faults.check()
    await ctx.tx.first(_LOCK_ACCOUNT, account_id=ctx.account_id)  # so that two at once cannot take the last place
    limit = ctx.settings.tokens_per_account
    if (await ctx.tx.first(_IN_FORCE, account_id=ctx.account_id, now_ms=ctx.now_ms) or 0) >= limit:
        raise TooManyTokens(limit)
    # Read again and locked: the token may have been revoked, or its person's role changed, since the request began.
    maker = await ctx.tx.first(_MAKER, account_id=ctx.account_id, id=ctx.actor.token_id)
    if maker is None:
        raise Unauthenticated("This token is no longer valid.")
    role = None if maker.role is None else Role(maker.role)
    for permission in wanted:
        if not may(maker.permissions.split(), role, permission):
            raise CannotHandOn(permission)
    days, ends_at_ms = None if new.expires_in_days is UNSET else new.expires_in_days, maker.expires_at_ms
    if ends_at_ms is not None and (days is None or ctx.now_ms + days * DAY_MS > ends_at_ms):
        most_days = max(0, (ends_at_ms - ctx.now_ms) // DAY_MS)
        raise Invalid({"expires_in_days": [Outlives(ends_at_ms, most_days)]})
    assert new.name is not UNSET
    return await add(ctx, new.name, wanted, expires_in_days=days, person_id=maker.person_id)


async def revoke(ctx: Ctx, token_id: int, *, children: bool = False) -> list[int]:
    """Revoke a token of the account; returns the ids of those that were. Raises `NotFound`.

    With `children` those go with it that it created, those that they created, and so on; it may be revoked already.
    """
    revoked: list[int] = []
    found = [token_id]
    while found:
        for one in found:
            if await ctx.tx.run(_REVOKE, account_id=ctx.account_id, id=one, revoked_at_ms=ctx.now_ms):
                await events.record(ctx, "token.revoke", "token", one)
                revoked.append(one)
        # Again until there are none: a token that was creating another at this moment has it by now.
        found = await ctx.tx.all(_FAMILY, account_id=ctx.account_id, id=token_id) if children else []
    if not revoked:
        raise NotFound("valid token", token_id)
    return revoked


async def account_of(ctx: Ctx, token_id: int) -> int:
    """For the operator: the account of a token, revoked or not; raises `NotFound`."""
    found = await ctx.tx.first(_ACCOUNT_OF, id=token_id)
    if found is None:
        raise NotFound("valid token", token_id)
    return found


async def any_token(ctx: Ctx) -> bool:
    """Whether a token was ever created."""
    count = await ctx.tx.first(_ANY)
    return bool(count)
