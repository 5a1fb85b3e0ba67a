"""Every POST of the API, ready to be sent, and databases that stumble."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import msgspec

from tests.api.tables import rows
from tests.api.test_access import PUBLIC_KEY, ROUTES
from tests.cloud import TINY, Cloud
from vpsd.api.app import make_app
from vpsd.core.db import WAIT_SECONDS, Database, Tx
from vpsd.core.outages import DatabaseStatus
from vpsd.lifecycle import Status

SERVERS = "/api/v1/servers/"
WEB = {"name": "web", **TINY}
KEY = {"Idempotency-Key": "4f1d7c1e-order-17"}

# By what the API calls them: a POST that is not here fails the test that walks them.
BODIES: dict[str, Any] = {
    "server_create": WEB,
    "server_undelete": None,
    "server_start": None,
    "server_stop": None,
    "server_reboot": None,
    "server_power": {"action": "stop"},
    "server_resize": {"plan_id": 3},
    "server_rebuild": {"os_id": 3},
    "backup_of_server": {"label": "before"},
    "snapshot_of_server": None,
    "backup_create": {"server_id": 1},
    "backup_restore": None,
    "snapshot_create": {"server_id": 1, "name": "before"},
    "snapshot_restore": None,
    "ssh_key_create": {"name": "laptop", "public_key": PUBLIC_KEY},
    "placement_group_create": {"name": "database"},
    "server_migrate": None,
    "token_create": {"name": "backup", "permissions": ["servers:read"]},
}
BEFORE = {"server_start": Status.STOPPED, "server_undelete": Status.DELETED}
POSTS = {operation["operationId"]: path for method, path, operation in ROUTES if method == "POST"}


async def ready(cloud: Cloud, operation: str) -> tuple[str, Any]:
    """Path and body of a POST that will be accepted."""
    path, body, ids = POSTS[operation], BODIES[operation], {}
    if "{" in path or "server_id" in (body or {}):
        status = BEFORE.get(operation, Status.ACTIVE)
        ids["server_id"] = await cloud.have_server(status=status)
        if "server_id" in (body or {}):
            body = {**body, "server_id": ids["server_id"]}
    for what in ("backup", "snapshot"):
        if f"{{{what}_id}}" in path:
            ids[f"{what}_id"] = (await cloud.have_copy(ids["server_id"], what))["id"]
    if operation == "server_migrate":
        await cloud.have_second_host()
        await cloud.may_everything()
    return path.format(**ids), body


async def count(cloud: Cloud, table: str) -> int:
    """How many rows a table has."""
    return len(await rows(cloud.database, table))


class Stumbling:
    """A database that is as good as another, except that something happens at one of its transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.status: DatabaseStatus = database.status
        self.written = 0  # transactions that were begun
        self.before: dict[int, Callable[[], Any]] = {}  # of the transaction with this number: awaited
        self.at_the_end: dict[int, BaseException] = {}  # raised in it, when all its work is done
        self.after: dict[int, BaseException] = {}  # raised when it is committed

    @asynccontextmanager
    async def write(self, wait_seconds: float = WAIT_SECONDS, **options: bool) -> AsyncIterator[Tx]:
        self.written += 1
        number = self.written
        if number in self.before:
            await self.before[number]()
        async with self._database.write(wait_seconds, **options) as tx:
            yield tx
            if number in self.at_the_end:
                raise self.at_the_end[number]
        if number in self.after:
            raise self.after[number]

    def read(self, wait_seconds: float = WAIT_SECONDS) -> AbstractAsyncContextManager[Tx]:
        return self._database.read(wait_seconds)

    def snapshot(self) -> AbstractAsyncContextManager[Tx]:
        return self._database.snapshot()

    def on_operation(self, wake: Callable[[], None]) -> None:
        self._database.on_operation(wake)

    async def close(self) -> None:
        await self._database.close()


# The transactions of a POST with a key, whose token was used a moment ago.
CLAIM, WORK = 1, 2


class Gate:
    """Where a request waits until it is told to go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.opened.wait()


@asynccontextmanager
async def api_on(cloud: Cloud, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """The API of another process, on that database, with Alice's token."""
    await cloud.get("/api/v1/account/me/")  # so that the use of the token need not be recorded
    app = make_app(msgspec.structs.replace(cloud.runtime, database=database))
    headers = {"Authorization": f"Bearer {cloud.tokens['alice']}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://vpsd.test", headers=headers
    ) as client:
        yield client
