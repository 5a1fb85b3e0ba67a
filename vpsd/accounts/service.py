"""Accounts and their people."""

import re
from functools import cache

import msgspec
from sqlalchemy import bindparam, delete, func, insert, select, update

from vpsd.accounts import events
from vpsd.accounts.models import Account, Actor, Person, accounts, installation, people, tokens
from vpsd.accounts.permissions import Role
from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.core.ids import Ids
from vpsd.errors import Invalid, NotFound

_ACCOUNTS = Statement(select(accounts).order_by(accounts.c.id))
_BY_NAME = Statement(select(accounts).where(accounts.c.name == bindparam("the_name")))
_BY_ID = select(accounts).where(accounts.c.id == bindparam("the_id"))
_ONE = Statement(_BY_ID)
_LOCK = Statement(_BY_ID.with_for_update(key_share=True))  # rows that point to it may still be added
_ADD_ACCOUNT = Statement(insert(accounts).returning(accounts), ("uuid", "name", "credit_limit_micros", "created_at_ms"))
_INSTANCE = Statement(select(installation.c.instance))
_ADD_INSTANCE = Statement(insert(installation), ("id", "instance"))
_PERSON_COLUMNS = (
    *(people.c.id, accounts.c.name, people.c.email, people.c.first_name, people.c.last_name, people.c.role),
    people.c.created_at_ms,
)
_PEOPLE = Statement(
    select(*_PERSON_COLUMNS)
    .join_from(people, accounts)
    .where(people.c.account_id == bindparam("the_account"))
    .order_by(people.c.id)
)
_ADD_PERSON = Statement(
    insert(people).returning(people.c.id),
    ("account_id", "email", "first_name", "last_name", "role", "created_at_ms"),
)
_SET_ROLE = Statement(update(people).where(people.c.id == bindparam("the_id")), ("role",))
_REMOVE_PERSON = Statement(delete(people).where(people.c.id == bindparam("the_id")))
_TOKENS_OF_PERSON = Statement(select(func.count()).select_from(tokens).where(tokens.c.person_id == bindparam("the_id")))
_FREE_TOKENS = Statement(
    update(tokens)
    .where(tokens.c.person_id == bindparam("the_id"))
    .values(person_id=None, revoked_at_ms=func.coalesce(tokens.c.revoked_at_ms, bindparam("b_now")))
)
_SET_EXHAUSTED = Statement(update(accounts).where(accounts.c.id == bindparam("the_id")), ("exhausted_at_ms",))

LIMITS = ("credit_limit_micros", "max_servers", "max_vcpus", "max_memory_mb", "max_storage_gb")
_LARGEST_INT = 2**31 - 1


async def instance(tx: Tx, ids: Ids) -> str:
    """This installation's own eight hex digits; made at the first call."""
    found = await tx.first(str, _INSTANCE)
    if found is None:
        found = ids.uuid()[:8]
        await tx.run(_ADD_INSTANCE, id=1, instance=found)
    return found


async def list_accounts(tx: Tx) -> list[Account]:
    """All accounts, oldest first."""
    return await tx.all(Account, _ACCOUNTS)


async def add_account(tx: Tx, ids: Ids, clock: Clock, name: str, *, credit_limit_micros: int | None = 0) -> Account:
    """Open an account, prepaid unless a credit limit is given (None: no limit); raises `Invalid` for a taken name."""
    if not 0 < len(name) <= 255 or not name.isprintable():
        raise Invalid({"name": ["Give a name of 1 to 255 printable characters."]})
    try:
        account = await tx.first(
            Account,
            _ADD_ACCOUNT,
            uuid=ids.uuid(),
            name=name,
            credit_limit_micros=credit_limit_micros,
            created_at_ms=clock.now_ms(),
        )
    except UniqueViolation:
        raise Invalid({"name": [f"There is an account {name!r} already."]}) from None
    assert account is not None
    await events.add(tx, clock, operator(account.id), "account.open")
    return account


def operator(account_id: int) -> Actor:
    """The operator, at work in an account."""
    return Actor(account_id=account_id, kind="operator")


async def find_account(tx: Tx, name: str) -> Account:
    """An account by its name; raises `NotFound`."""
    account = await tx.first(Account, _BY_NAME, the_name=name)
    if account is None:
        raise NotFound(f"There is no account {name!r}; `vpsd account list` shows them.")
    return account


async def get_account(tx: Tx, account_id: int) -> Account:
    """An account that must exist."""
    account = await tx.first(Account, _ONE, the_id=account_id)
    assert account is not None
    return account


async def lock_account(tx: Tx, account_id: int) -> Account:
    """An account that must exist, kept from others that lock it until the transaction ends."""
    account = await tx.first(Account, _LOCK, the_id=account_id)
    assert account is not None
    return account


@cache
def _change(columns: tuple[str, ...]) -> Statement:
    return Statement(update(accounts).where(accounts.c.id == bindparam("the_id")), columns)


async def set_limits(tx: Tx, clock: Clock, account: Account, limits: dict[str, int | None]) -> None:
    """Change some of `LIMITS`; None takes a limit away. Raises `Invalid` for a limit below zero."""
    for name, limit in limits.items():
        if limit is not None and not 0 <= limit <= (2**62 if name == "credit_limit_micros" else _LARGEST_INT):
            raise Invalid({name: ["Give a number from 0, or `none` for no limit."]})
    if limits:
        await tx.run(_change(tuple(limits)), the_id=account.id, **limits)
        detail = ", ".join(f"{name} {'none' if limit is None else limit}" for name, limit in limits.items())
        await events.add(tx, clock, operator(account.id), "account.limit", detail=detail)


async def set_exhausted(tx: Tx, account_id: int, at_ms: int | None) -> None:
    """Since when the account has no credit left; None: it has some."""
    await tx.run(_SET_EXHAUSTED, the_id=account_id, exhausted_at_ms=at_ms)


async def list_people(tx: Tx, account_id: int) -> list[Person]:
    """Who belongs to an account, in the order in which they came."""
    return await tx.all(Person, _PEOPLE, the_account=account_id)


async def find_person(tx: Tx, account: Account, email: str) -> Person:
    """Somebody of the account; raises `NotFound`."""
    found = [person for person in await list_people(tx, account.id) if person.email == email.lower()]
    if not found:
        raise NotFound(f"{email} does not belong to {account.name!r}; `vpsd account show` lists who does.")
    return found[0]


class NewPerson(msgspec.Struct, frozen=True):
    """Somebody to take into an account."""

    email: str
    first_name: str = ""
    last_name: str = ""
    role: Role = Role.OWNER


async def add_person(tx: Tx, clock: Clock, account: Account, person: NewPerson) -> Person:
    """Take somebody in; raises `Invalid` for an address that is none or that belongs to the account already."""
    email = person.email.lower()
    if len(email) > 254 or not re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s.]+", email):
        raise Invalid({"email": [f"{person.email!r} is no e-mail address."]})
    if (
        max(len(person.first_name), len(person.last_name)) > 255
        or not (person.first_name + person.last_name).isprintable()
    ):
        raise Invalid({"first_name": ["Give names of at most 255 printable characters."]})
    try:
        await tx.run(
            _ADD_PERSON,
            account_id=account.id,
            email=email,
            first_name=person.first_name,
            last_name=person.last_name,
            role=person.role,
            created_at_ms=clock.now_ms(),
        )
    except UniqueViolation:
        raise Invalid({"email": [f"{email} belongs to {account.name!r} already."]}) from None
    await events.add(tx, clock, operator(account.id), "person.add", detail=f"{email} as {person.role}")
    return await find_person(tx, account, email)


async def set_role(tx: Tx, clock: Clock, account: Account, email: str, role: Role) -> Person:
    """Change what somebody may do at most; their tokens are bounded by it from now on. Raises `NotFound`."""
    person = await find_person(tx, account, email)
    await tx.run(_SET_ROLE, the_id=person.id, role=role)
    await events.add(tx, clock, operator(account.id), "person.role", detail=f"{person.email} as {role}")
    return await find_person(tx, account, email)


async def remove_person(tx: Tx, clock: Clock, account: Account, email: str) -> int:
    """Take somebody out, and revoke their tokens; says how many tokens they had. Raises `NotFound`."""
    person = await find_person(tx, account, email)
    count = await tx.first(int, _TOKENS_OF_PERSON, the_id=person.id) or 0
    await tx.run(_FREE_TOKENS, the_id=person.id, b_now=clock.now_ms())
    await tx.run(_REMOVE_PERSON, the_id=person.id)
    await events.add(tx, clock, operator(account.id), "person.remove", detail=person.email)
    return count
