"""The SSH keys section."""

from litestar import Router

from vpsd.api.http.forms import Form, PageQuery, Query
from vpsd.api.http.routes import delete, get, post
from vpsd.api.vps_org.schemas.ssh_keys import SshKeyCreate, SshKeyList, SshKeyView
from vpsd.core.context import Ctx
from vpsd.errors import OverQuota
from vpsd.ssh_keys import service as ssh_keys
from vpsd.ssh_keys.service import NewSshKey


@get("/", "ssh_key_list", "List SSH keys", needs="ssh_keys:read")
async def list_keys(ctx: Ctx, query: Query[PageQuery]) -> SshKeyList:
    """All keys of the account, newest last."""
    part = await ssh_keys.list_keys(ctx, query.validate().page)
    return SshKeyList.of(query, part, [SshKeyView.of(key) for key in part.rows])


@post("/", "ssh_key_create", "Add an SSH key", needs="ssh_keys:*", raises=(OverQuota,))
async def add(ctx: Ctx, form: Form[SshKeyCreate]) -> SshKeyView:
    """Keep a public key, to be installed on servers that are made with it."""
    return SshKeyView.of(await ssh_keys.add(ctx, form.plain(NewSshKey), form.faults))


@get("/{key_id:int}/", "ssh_key_get", "Get an SSH key", needs="ssh_keys:read")
async def get_key(ctx: Ctx, key_id: int) -> SshKeyView:
    """One key."""
    return SshKeyView.of(await ssh_keys.get(ctx, key_id))


@delete("/{key_id:int}/", "ssh_key_delete", "Delete an SSH key", needs="ssh_keys:*")
async def remove(ctx: Ctx, key_id: int) -> None:
    """Forget a key; servers that were made with it keep it."""
    await ssh_keys.delete_key(ctx, key_id)


router = Router("/ssh-keys", route_handlers=[list_keys, add, get_key, remove], tags=["SSH keys"])
