"""The SSH keys section."""

from typing import Annotated

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.params import FromPath, JSONBody, Parameter

from vpsd.api.carrying import carry_out
from vpsd.api.cloud import CloudRequest, Listing, cloud_of, neighbours
from vpsd.core.clock import iso_utc
from vpsd.core.db import Tx
from vpsd.core.forms import Form
from vpsd.core.pages import PageQuery
from vpsd.ssh_keys import service
from vpsd.ssh_keys.models import SshKey
from vpsd.ssh_keys.service import SshKeyCreate


class SshKeyView(msgspec.Struct):
    """A public key."""

    id: int
    uuid: str
    name: str
    public_key: str
    fingerprint: str
    created_at: str

    @classmethod
    def of(cls, key: SshKey) -> "SshKeyView":
        """From a row."""
        return cls(key.id, key.uuid, key.name, key.public_key, key.fingerprint, iso_utc(key.created_at_ms))


class SshKeyList(Listing):
    """A page of keys."""

    results: list[SshKeyView]


KeyId = FromPath[Annotated[int, Parameter(description="Id of the key")]]


@get("/", operation_id="ssh_key_list", summary="List SSH keys", opt={"needs": "ssh_keys:read", "query": PageQuery})
async def list_keys(request: CloudRequest) -> SshKeyList:
    """All keys of the account, newest last."""
    wanted = request.page()
    async with cloud_of(request).database.read() as tx:
        count, keys = await service.list_keys(tx, request.user, wanted)
    return SshKeyList(count, *neighbours(request, wanted, count), [SshKeyView.of(key) for key in keys])


@post("/", operation_id="ssh_key_create", summary="Add an SSH key", opt={"needs": "ssh_keys:*"})
async def add(request: CloudRequest, data: JSONBody[Form[SshKeyCreate]]) -> Response[SshKeyView]:
    """Keep a public key, to be installed on servers that are made with it."""
    cloud = cloud_of(request)

    async def work(tx: Tx) -> SshKeyView:
        return SshKeyView.of(await service.add(tx, request.user, cloud.ids, cloud.clock, data))

    return await carry_out(request, work, 201)


@get("/{key_id:int}/", operation_id="ssh_key_get", summary="Get an SSH key", opt={"needs": "ssh_keys:read"})
async def detail(request: CloudRequest, key_id: KeyId) -> SshKeyView:
    """One key."""
    async with cloud_of(request).database.read() as tx:
        return SshKeyView.of(await service.get(tx, request.user, key_id))


@delete("/{key_id:int}/", operation_id="ssh_key_delete", summary="Delete an SSH key", opt={"needs": "ssh_keys:*"})
async def remove(request: CloudRequest, key_id: KeyId) -> None:
    """Forget a key; servers that were made with it keep it."""
    cloud = cloud_of(request)
    async with cloud.database.write() as tx:
        await service.delete_key(tx, request.user, cloud.clock, key_id)


router = Router("/ssh-keys", route_handlers=[list_keys, add, detail, remove], tags=["SSH keys"])
