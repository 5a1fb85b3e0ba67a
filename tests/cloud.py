"""A whole vpsd in the hands of a test: real database, simulated host, a clock that only moves when told to.

Alice is the customer, Charlie is a stranger with an account of his own, nobody has no token.
"""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.accounts.models import Account
from vpsd.addresses import service as addresses
from vpsd.addresses.service import Assignment
from vpsd.api.app import make_app
from vpsd.api.cloud import Cloud as ApiCloud
from vpsd.api.cloud import HostStatus
from vpsd.api.edge import Asgi
from vpsd.backups.repository import Repository
from vpsd.backups.targets import Directory
from vpsd.billing import service as billing
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.core.clock import FakeClock
from vpsd.core.db import Database
from vpsd.core.ids import Ids
from vpsd.core.money import MICROS
from vpsd.hypervisor.protocol import disk_name, guest_name
from vpsd.hypervisor.simulator import Hook, Simulator
from vpsd.images.simulated import SimulatedImages
from vpsd.operations import service as operations
from vpsd.servers import rows
from vpsd.servers.jobs import Images, World
from vpsd.servers.lifecycle import Status
from vpsd.servers.models import Server
from vpsd.settings import Settings
from vpsd.worker.biller import Biller
from vpsd.worker.keeper import Keeper
from vpsd.worker.reconcile import Reconciler
from vpsd.worker.runner import Runner
from vpsd.worker.sampler import Sampler

TINY = {"plan_id": 4, "os_id": 1, "location": "us-west"}


async def never_ticks(seconds: float) -> None:
    """A heartbeat that does not beat: tests that want one pass their own."""
    await asyncio.Event().wait()


class RecordingTarget(Directory):
    """A target in a folder that records its calls, with a hook before each."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = path
        self.calls: list[str] = []
        self.before_call: Hook | None = None  # may raise

    async def _called(self, call: str) -> None:
        self.calls.append(call)
        if self.before_call is not None and (waiting := self.before_call(call)) is not None:
            await waiting

    async def put(self, key: str, data: bytes) -> None:
        await self._called("put")
        await super().put(key, data)

    async def get(self, key: str) -> bytes:
        await self._called("get")
        return await super().get(key)

    async def keys(self, folder: str) -> list[str]:
        await self._called("keys")
        return await super().keys(folder)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._called("delete")
        await super().delete(keys)

    def objects(self) -> list[str]:
        """The paths of all files."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())


class Cloud:
    """vpsd, and short words for what tests do with it."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.clock = FakeClock()
        self.ids = Ids(random.Random(7))
        self.database = database
        self.settings = settings
        self.hypervisor = Simulator(clock=self.clock)
        self.target = RecordingTarget(settings.backup_folder)
        self.instance = ""
        self.world: World
        self.http: httpx.AsyncClient
        self.tokens: dict[str, str] = {}
        self.offered: Catalog

    async def open(self, offered: Catalog, images: Images | None = None) -> None:
        self.offered = offered
        async with self.database.write() as tx:
            await catalog.apply(tx, self.clock, offered)
            self.instance = await accounts.instance(tx, self.ids)
            for name in ("alice", "charlie"):
                account = await accounts.add_account(tx, self.ids, self.clock, name)
                beginning = (1000 * MICROS, "to begin with")
                await billing.add_credit(tx, self.ids, self.clock, self.settings, account, *beginning)
                actor = accounts.operator(account.id)
                _, self.tokens[name] = await tokens.add(tx, self.ids, self.clock, actor, "test")
        repository = Repository(self.target, self.instance, None)
        self.world = World(
            self.database,
            self.hypervisor,
            images or SimulatedImages(),
            repository,
            self.clock,
            self.settings,
            self.instance,
        )
        app = self.app()
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://vpsd.test")

    def app(self, **settings: Any) -> Asgi:
        """The API, with the settings of this vpsd or some of one's own."""
        own = msgspec.structs.replace(self.settings, **settings)
        return make_app(ApiCloud(self.database, self.clock, self.ids, HostStatus("ok"), own))

    async def offer(self, plan_id: int, **changed: Any) -> None:
        """Have one plan more: the nano with some of it changed."""
        nano = next(plan for plan in self.offered.plans if plan.slug == "nano")
        more = msgspec.structs.replace(nano, id=plan_id, name=f"Plan {plan_id}", slug=f"plan-{plan_id}", **changed)
        async with self.database.write() as tx:
            plans = [*self.offered.plans, more]
            await catalog.apply(tx, self.clock, msgspec.structs.replace(self.offered, plans=plans))

    def set(self, **settings: Any) -> None:
        """Have API and worker go by other settings from now on."""
        self.settings = msgspec.structs.replace(self.settings, **settings)
        self.world = msgspec.structs.replace(self.world, settings=self.settings)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app()), base_url="http://vpsd.test")

    async def close(self) -> None:
        await self.http.aclose()
        await self.hypervisor.close()
        await self.database.close()

    async def ask(self, method: str, path: str, *, who: str | None = "alice", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"} if who else {}
        return await self.http.request(method, path, headers={**headers, **options.pop("headers", {})}, **options)

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.ask("POST", path, **({} if json is None else {"json": json}), **options)

    def runner(self, owner: str = "worker", **options: Any) -> Runner:
        return Runner(self.world, self.ids, owner, **{"tick": never_ticks, **options})

    def reconciler(self) -> Reconciler:
        return Reconciler(self.world, self.ids)

    def biller(self) -> Biller:
        return Biller(self.world, self.ids)

    def keeper(self) -> Keeper:
        return Keeper(self.world, self.ids)

    def sampler(self) -> Sampler:
        return Sampler(self.world)

    async def work(self, owner: str = "worker") -> int:
        """Do every operation that is due now; how many times one was taken up."""
        runner = self.runner(owner)
        taken = 0
        while await runner.run_once():
            taken += 1
            assert taken < 200, "operations do not come to rest"
        return taken

    async def settle(self) -> None:
        """Let everything come to rest, retries and all: works, moves the clock, looks at the world."""
        for _ in range(60):
            await self.work()
            self.clock.advance(1)
            await self.reconciler().reconcile()
            if not await self.work():
                async with self.database.read() as tx:
                    if not await operations.busy_servers(tx):
                        return
            self.clock.advance(20)

    async def create(self, name: str = "web", who: str = "alice", **body: Any) -> int:
        answer = await self.post("/api/v1/servers/", {"name": name, **TINY, **body}, who=who)
        assert answer.status_code == 201, answer.text
        server_id: int = answer.json()["id"]
        return server_id

    async def have_server(self, name: str = "web", status: Status = Status.ACTIVE, who: str = "alice") -> int:
        """A server of this name, at rest in this status."""
        server_id = await self.create(name, who)
        await self.work()
        if status is Status.STOPPED:
            await self.post(f"/api/v1/servers/{server_id}/stop/", who=who)
            await self.work()
        elif status is not Status.ACTIVE:
            async with self.database.write() as tx:
                await rows.set_status(tx, server_id, status, None, self.clock.now_ms())
        assert await self.status(server_id) == status
        self.clock.advance(1)
        return server_id

    async def have_copy(self, server_id: int, what: str = "backup", who: str = "alice") -> dict[str, Any]:
        """A completed backup or snapshot of a server: what the API says of it."""
        made = await self.post(f"/api/v1/servers/{server_id}/{what}/", who=who)
        assert made.status_code == 201, made.text
        await self.work()
        found: dict[str, Any] = (await self.get(f"/api/v1/{what}s/{made.json()['id']}/", who=who)).json()
        assert found["status"] == "completed", found
        self.clock.advance(1)
        return found

    async def row(self, server_id: int) -> Server:
        async with self.database.read() as tx:
            return await rows.get(tx, server_id)

    async def status(self, server_id: int) -> str:
        return (await self.row(server_id)).status

    async def operations(self, server_id: int, who: str = "alice") -> list[dict[str, Any]]:
        answer = await self.get(f"/api/v1/servers/{server_id}/operations/", who=who)
        results: list[dict[str, Any]] = answer.json()["results"]
        return results

    async def addresses(self) -> list[Assignment]:
        async with self.database.read() as tx:
            return await addresses.assignments(tx)

    async def account(self, who: str = "alice") -> Account:
        async with self.database.read() as tx:
            return await accounts.find_account(tx, who)

    async def balance(self, who: str = "alice") -> int:
        """In micros."""
        async with self.database.read() as tx:
            return await billing.balance(tx, (await accounts.find_account(tx, who)).id)

    async def have_balance(self, micros: int, who: str = "alice") -> None:
        """Book what it takes for the balance to be that."""
        missing = micros - await self.balance(who)
        if not missing:
            return
        async with self.database.write() as tx:
            account = await accounts.find_account(tx, who)
            await billing.add_credit(tx, self.ids, self.clock, self.settings, account, missing, "for a test")

    async def token(self, *permissions: str, who: str = "alice", **options: Any) -> str:
        """A token with these permissions, under a name that `who=` takes."""
        name = f"{who}: {' '.join(permissions)}"
        async with self.database.write() as tx:
            actor = accounts.operator((await accounts.find_account(tx, who)).id)
            _, self.tokens[name] = await tokens.add(
                tx, self.ids, self.clock, actor, name, permissions or ("*:*",), **options
            )
        return name

    async def disk(self, server_id: int) -> str:
        """The disk that a server runs from."""
        return disk_name(self.guest(server_id), (await self.row(server_id)).disk)

    def guest(self, server_id: int) -> str:
        return guest_name(self.instance, server_id)
