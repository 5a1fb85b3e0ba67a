"""Accounts and tokens: who may knock at all."""

from sqlalchemy import bindparam, func, insert, select, update

from vpsd.accounts.models import Account, Caller, Token, accounts, installation, tokens
from vpsd.core.clock import Clock
from vpsd.core.db import Statement, Tx, UniqueViolation
from vpsd.core.ids import Ids, token_hash
from vpsd.errors import Invalid, NotFound, Unauthenticated

_CALLER = Statement(
    select(tokens.c.account_id, tokens.c.id).where(
        tokens.c.hash == bindparam("the_hash"), tokens.c.revoked_at_ms.is_(None)
    )
)
_ACCOUNT_COLUMNS = (accounts.c.id, accounts.c.uuid, accounts.c.name, accounts.c.created_at_ms)
_ACCOUNTS = Statement(select(*_ACCOUNT_COLUMNS).order_by(accounts.c.id))
_ACCOUNT = Statement(select(*_ACCOUNT_COLUMNS).where(accounts.c.name == bindparam("the_name")))
_ADD_ACCOUNT = Statement(insert(accounts).returning(*_ACCOUNT_COLUMNS), ("uuid", "name", "created_at_ms"))
_TOKEN_COLUMNS = (
    tokens.c.id,
    tokens.c.uuid,
    accounts.c.name,
    tokens.c.name,
    tokens.c.created_at_ms,
    tokens.c.revoked_at_ms,
)
_TOKENS = Statement(select(*_TOKEN_COLUMNS).join_from(tokens, accounts).order_by(tokens.c.id))
_ADD_TOKEN = Statement(insert(tokens), ("uuid", "account_id", "name", "hash", "created_at_ms"))
_REVOKE = Statement(
    update(tokens).where(tokens.c.id == bindparam("the_id"), tokens.c.revoked_at_ms.is_(None)), ("revoked_at_ms",)
)
_INSTANCE = Statement(select(installation.c.instance))
_ADD_INSTANCE = Statement(insert(installation), ("id", "instance"))
_COUNT_TOKENS = Statement(select(func.count()).select_from(tokens))


async def authenticate(tx: Tx, token: str) -> Caller:
    """Find who a token speaks for; raises `Unauthenticated`."""
    caller = await tx.first(Caller, _CALLER, the_hash=token_hash(token))
    if caller is None:
        raise Unauthenticated("This token is not valid. Check that it was copied whole and was not revoked.")
    return caller


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


async def add_account(tx: Tx, ids: Ids, clock: Clock, name: str) -> Account:
    """Open an account; raises `Invalid` when the name is taken."""
    if not 0 < len(name) <= 255:
        raise Invalid({"name": ["Give a name of 1 to 255 characters."]})
    try:
        account = await tx.first(Account, _ADD_ACCOUNT, uuid=ids.uuid(), name=name, created_at_ms=clock.now_ms())
    except UniqueViolation:
        raise Invalid({"name": [f"There is an account {name!r} already."]}) from None
    assert account is not None
    return account


async def get_account(tx: Tx, name: str) -> Account:
    """An account by its name; raises `NotFound`."""
    account = await tx.first(Account, _ACCOUNT, the_name=name)
    if account is None:
        raise NotFound(f"There is no account {name!r}; `vpsd account list` shows them.")
    return account


async def list_tokens(tx: Tx) -> list[Token]:
    """All tokens, oldest first; never their values."""
    return await tx.all(Token, _TOKENS)


async def add_token(tx: Tx, ids: Ids, clock: Clock, account_id: int, name: str) -> str:
    """Make a token and return its value: the only time that it is to be seen."""
    token = ids.token()
    await tx.run(
        _ADD_TOKEN,
        uuid=ids.uuid(),
        account_id=account_id,
        name=name,
        hash=token_hash(token),
        created_at_ms=clock.now_ms(),
    )
    return token


async def revoke_token(tx: Tx, clock: Clock, token_id: int) -> None:
    """Make a token worthless from now on; raises `NotFound`."""
    if not await tx.run(_REVOKE, the_id=token_id, revoked_at_ms=clock.now_ms()):
        raise NotFound(f"There is no valid token {token_id}; `vpsd token list` shows them.")


async def any_token(tx: Tx) -> bool:
    """Whether a token was ever made."""
    return bool(await tx.first(int, _COUNT_TOKENS))
