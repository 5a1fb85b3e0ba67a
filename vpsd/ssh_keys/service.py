"""SSH public keys of accounts."""

import msgspec
from msgspec import UNSET, UnsetType
from sqlalchemy import bindparam, delete, func, insert, select

from vpsd.accounts import service as accounts
from vpsd.core.context import Ctx
from vpsd.core.db import Statement, UniqueViolation
from vpsd.core.faults import Faults
from vpsd.core.pages import Page, PagedList, Part
from vpsd.errors import Fault, Invalid, NotFound, OverQuota
from vpsd.events import service as events
from vpsd.ssh_keys.lines import parse
from vpsd.ssh_keys.models import SshKey, ssh_keys

_OWN = ssh_keys.c.account_id == bindparam("account_id")
_OWN_ONE = (_OWN, ssh_keys.c.id == bindparam("id"))
_COLUMNS = [column for column in ssh_keys.c if column.name != "account_id"]
_LIST = PagedList(select(*_COLUMNS).where(_OWN), ssh_keys.c.id, into=SshKey)
_ONE = Statement(select(*_COLUMNS).where(*_OWN_ONE), into=SshKey)
_ADD = Statement(
    insert(ssh_keys).returning(*_COLUMNS),
    ("uuid", "account_id", "name", "public_key", "fingerprint", "created_at_ms"),
    into=SshKey,
)
_COUNT = Statement(select(func.count()).select_from(ssh_keys).where(_OWN), into=int)
_DELETE = Statement(delete(ssh_keys).where(*_OWN_ONE))


class NewSshKey(msgspec.Struct, frozen=True):
    """A key to add; what was not sent or could not be read is unset."""

    name: str | UnsetType = UNSET
    public_key: str | UnsetType = UNSET


class KeyTaken(Fault, frozen=True):
    """The account already has the key."""

    fingerprint: str

    def __str__(self) -> str:
        return f"The account already has this key ({self.fingerprint})."


class TooManyKeys(OverQuota):
    """The account has as many keys as it may have."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"An account may have {limit} SSH keys. Delete one that is no longer used.")
        self.limit = limit


async def list_keys(ctx: Ctx, page: Page) -> Part[SshKey]:
    """How many keys the account has, and a page of them, oldest first."""
    return await _LIST.read(ctx, page)


async def find(ctx: Ctx, key_id: int) -> SshKey | None:
    """A key of the account."""
    return await ctx.tx.first(_ONE, account_id=ctx.account_id, id=key_id)


async def get(ctx: Ctx, key_id: int) -> SshKey:
    """A key of the account; raises `NotFound`."""
    key = await find(ctx, key_id)
    if key is None:
        raise NotFound("SSH key", key_id)
    return key


async def add(ctx: Ctx, new: NewSshKey, faults: Faults) -> SshKey:
    """Add a key.

    Raises `Invalid` if servers would not accept it, or the account already has it, and `TooManyKeys`.
    """
    line = fingerprint = ""
    if new.public_key is not UNSET:
        try:
            line, fingerprint = parse(new.public_key)
        except ValueError as error:
            faults.add("public_key", str(error))
    faults.check()
    await accounts.lock_account(ctx, ctx.account_id)  # so that two at once cannot take the last place
    limit = ctx.settings.ssh_keys_per_account
    if (await ctx.tx.first(_COUNT, account_id=ctx.account_id) or 0) >= limit:
        raise TooManyKeys(limit)
    try:
        key = await ctx.tx.first(
            _ADD,
            uuid=ctx.ids.uuid(),
            account_id=ctx.account_id,
            name=new.name,
            public_key=line,
            fingerprint=fingerprint,
            created_at_ms=ctx.now_ms,
        )
    except UniqueViolation:
        raise Invalid({"public_key": [KeyTaken(fingerprint)]}) from None
    assert key is not None
    await events.record(ctx, "ssh_key.add", "ssh_key", key.id, f"{key.name} {fingerprint}")
    return key


async def delete_key(ctx: Ctx, key_id: int) -> None:
    """Delete a key; servers that were created with it keep it. Raises `NotFound`."""
    if not await ctx.tx.run(_DELETE, account_id=ctx.account_id, id=key_id):
        raise NotFound("SSH key", key_id)
    await events.record(ctx, "ssh_key.delete", "ssh_key", key_id)
