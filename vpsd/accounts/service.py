"""Accounts and their people. Whoever changes something in an account acts in it: `ctx.in_account(account.id)`."""

import re
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, update

from vpsd.accounts import tokens
from vpsd.accounts.faults import AccountTaken, LimitOutOfRange, NotAnEmail, NotPrintable, PersonTaken
from vpsd.accounts.models import Account, Person, Profile, accounts, installation, people
from vpsd.accounts.models import tokens as token_table
from vpsd.accounts.permissions import Role, effective
from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.errors import Invalid, NotFound
from vpsd.events import service as events

_ACCOUNTS = Statement(select(accounts).order_by(accounts.c.id), into=Account)
_BY_NAME = Statement(select(accounts).where(accounts.c.name == bindparam("name")), into=Account)
_BY_ID = select(accounts).where(accounts.c.id == bindparam("account_id"))
_ONE = Statement(_BY_ID, into=Account)
_LOCK = Statement(_BY_ID.with_for_update(key_share=True), into=Account)  # rows that point to it may still be added
_ADD_ACCOUNT = Statement(
    insert(accounts).returning(accounts), ("uuid", "name", "credit_limit_micros", "created_at_ms"), into=Account
)
_INSTANCE = Statement(select(installation.c.instance), into=str)
_ADD_INSTANCE = Statement(insert(installation), ("id", "instance"))
_OWN = people.c.account_id == bindparam("own_account_id")
_OWN_PERSON = (_OWN, people.c.id == bindparam("person"))
_PEOPLE = Statement(
    select(
        *(people.c.id, accounts.c.name.label("account"), people.c.email, people.c.first_name, people.c.last_name),
        *(people.c.role, people.c.created_at_ms),
    )
    .join_from(people, accounts)
    .where(_OWN)
    .order_by(people.c.id),
    into=Person,
)
_ADD_PERSON = Statement(insert(people), ("account_id", "email", "first_name", "last_name", "role", "created_at_ms"))
_SET_ROLE = Statement(update(people).where(*_OWN_PERSON), ("role",))
_REMOVE_PERSON = Statement(delete(people).where(*_OWN_PERSON))
_FREE_TOKENS = Statement(
    update(token_table)
    .where(token_table.c.account_id == bindparam("own_account_id"), token_table.c.person_id == bindparam("person"))
    .values(person_id=None, revoked_at_ms=func.coalesce(token_table.c.revoked_at_ms, bindparam("now_ms")))
)
_SET_EXHAUSTED = Statement(update(accounts).where(accounts.c.id == bindparam("account_id")), ("exhausted_at_ms",))

LIMITS = ("credit_limit_micros", "max_servers", "max_vcpus", "max_memory_mb", "max_storage_gb")
_LARGEST_INT = 2**31 - 1


async def instance(ctx: Ctx) -> str:
    """This installation's own eight hex digits; made at the first call."""
    found = await ctx.tx.first(_INSTANCE)
    if found is None:
        found = ctx.ids.uuid()[:8]
        await ctx.tx.run(_ADD_INSTANCE, id=1, instance=found)
    return found


async def list_accounts(ctx: Ctx) -> list[Account]:
    """All accounts, oldest first."""
    return await ctx.tx.all(_ACCOUNTS)


async def add_account(ctx: Ctx, name: str, *, credit_limit_micros: int | None = 0) -> Account:
    """Open an account, prepaid unless a credit limit is given (None: no limit); raises `Invalid` for a taken name."""
    if not 0 < len(name) <= 255 or not name.isprintable():
        raise Invalid({"name": [NotPrintable(1, 255)]})
    try:
        account = await ctx.tx.first(
            _ADD_ACCOUNT,
            uuid=ctx.ids.uuid(),
            name=name,
            credit_limit_micros=credit_limit_micros,
            created_at_ms=ctx.now_ms,
        )
    except UniqueViolation:
        raise Invalid({"name": [AccountTaken(name)]}) from None
    assert account is not None
    await events.record(ctx.in_account(account.id), "account.open")
    return account


async def find_account(ctx: Ctx, name: str) -> Account:
    """An account by its name; raises `NotFound`."""
    account = await ctx.tx.first(_BY_NAME, name=name)
    if account is None:
        raise NotFound("account", name)
    return account


async def get_account(ctx: Ctx, account_id: int) -> Account:
    """An account that must exist."""
    account = await ctx.tx.first(_ONE, account_id=account_id)
    assert account is not None
    return account


async def lock_account(ctx: Ctx, account_id: int) -> Account:
    """An account that must exist, kept from others that lock it until the transaction ends."""
    account = await ctx.tx.first(_LOCK, account_id=account_id)
    assert account is not None
    return account


@cache
def _change(columns: tuple[str, ...]) -> Statement[Any]:
    return Statement(update(accounts).where(accounts.c.id == bindparam("account_id")), columns)


async def set_limits(ctx: Ctx, account: Account, limits: dict[str, int | None]) -> None:
    """Change some of an account's `LIMITS`; None takes a limit away. Raises `Invalid` for a limit below zero."""
    for name, limit in limits.items():
        largest = 2**62 if name == "credit_limit_micros" else _LARGEST_INT
        if limit is not None and not 0 <= limit <= largest:
            raise Invalid({name: [LimitOutOfRange(largest)]})
    if limits:
        await ctx.tx.run(_change(tuple(limits)), account_id=account.id, **limits)
        detail = ", ".join(f"{name} {'none' if limit is None else limit}" for name, limit in limits.items())
        await events.record(ctx.in_account(account.id), "account.limit", detail=detail)


async def set_exhausted(ctx: Ctx, at_ms: int | None) -> None:
    """Since when the account has no credit left; None: it has some."""
    await ctx.tx.run(_SET_EXHAUSTED, account_id=ctx.account_id, exhausted_at_ms=at_ms)


async def profile(ctx: Ctx) -> Profile:
    """Whose token it is that asks, and what it may do."""
    assert ctx.actor.token_id is not None
    account = await get_account(ctx, ctx.account_id)
    token = await tokens.get(ctx, ctx.actor.token_id)
    found = await list_people(ctx)
    mine = next((person for person in found if person.email == token.person), None)
    permissions = effective(token.permissions, None if mine is None else Role(mine.role))
    owner = next((person for person in found if person.role == Role.OWNER), None)
    return Profile(account, msgspec.structs.replace(token, permissions=permissions), mine or owner)


async def list_people(ctx: Ctx) -> list[Person]:
    """Who belongs to the account, in the order in which they came."""
    return await ctx.tx.all(_PEOPLE, own_account_id=ctx.account_id)


async def find_person(ctx: Ctx, email: str) -> Person:
    """Somebody of the account; raises `NotFound`."""
    found = [person for person in await list_people(ctx) if person.email == email.lower()]
    if not found:
        raise NotFound("person", email)
    return found[0]


class NewPerson(msgspec.Struct, frozen=True):
    """Somebody to take into an account."""

    email: str
    first_name: str = ""
    last_name: str = ""
    role: Role = Role.OWNER


async def add_person(ctx: Ctx, person: NewPerson) -> Person:
    """Take somebody into the account; raises `Invalid` for an address that is not valid, or is taken already."""
    email, names = person.email.lower(), (person.first_name, person.last_name)
    if len(email) > 254 or not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s.]+", email):
        raise Invalid({"email": [NotAnEmail(person.email)]})
    if max(map(len, names)) > 255 or not "".join(names).isprintable():
        raise Invalid({"first_name": [NotPrintable(0, 255)]})
    try:
        await ctx.tx.run(
            _ADD_PERSON,
            account_id=ctx.account_id,
            email=email,
            first_name=person.first_name,
            last_name=person.last_name,
            role=person.role,
            created_at_ms=ctx.now_ms,
        )
    except UniqueViolation:
        raise Invalid({"email": [PersonTaken(email)]}) from None
    await events.record(ctx, "person.add", detail=f"{email} as {person.role}")
    return await find_person(ctx, email)


async def set_role(ctx: Ctx, email: str, role: Role) -> Person:
    """Change what somebody may do at most; their tokens are bounded by it from now on. Raises `NotFound`."""
    person = await find_person(ctx, email)
    await ctx.tx.run(_SET_ROLE, own_account_id=ctx.account_id, person=person.id, role=role)
    await events.record(ctx, "person.role", detail=f"{person.email} as {role}")
    return await find_person(ctx, email)


async def remove_person(ctx: Ctx, email: str) -> int:
    """Take somebody out, and revoke their tokens; says how many tokens they had. Raises `NotFound`."""
    person = await find_person(ctx, email)
    theirs = {"own_account_id": ctx.account_id, "person": person.id}
    count = await ctx.tx.run(_FREE_TOKENS, **theirs, now_ms=ctx.now_ms)
    await ctx.tx.run(_REMOVE_PERSON, **theirs)
    await events.record(ctx, "person.remove", detail=person.email)
    return count
