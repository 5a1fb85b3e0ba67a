"""A whole vpsd in the hands of a test: real database, simulated host, a clock that only moves when told to.

Alice is the customer, Charlie is a stranger with an account of his own, nobody has no token.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec

from tests.api.tables import change
from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.accounts.models import Account
from vpsd.api.app import make_app
from vpsd.api.http.middleware import Asgi
from vpsd.backups.repository import Repository
from vpsd.backups.targets import MARK, Directory
from vpsd.billing import credit, ledger
from vpsd.catalog import service as catalog
from vpsd.catalog.service import Catalog
from vpsd.core.clock import FakeClock
from vpsd.core.context import OPERATOR, Actor, Ctx
from vpsd.core.db import Database
from vpsd.core.faults import Faults
from vpsd.core.ids import Ids
from vpsd.core.jumps import ClockJumps
from vpsd.core.money import MICROS
from vpsd.core.sums import SUMS, Difference
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, Host, HostHealth, HostState
from vpsd.hosts.models import hosts as hosts_table
from vpsd.hosts.status import HostStatus
from vpsd.hypervisor.protocol import disk_name, guest_name
from vpsd.hypervisor.simulator import Hook, SharedPool, Simulator
from vpsd.hypervisor.simulator.journal import MemoryStore
from vpsd.images.simulated import SimulatedImages
from vpsd.lifecycle import Status
from vpsd.network import addresses
from vpsd.network.addresses import Assignment
from vpsd.operations import history
from vpsd.operations import service as operations
from vpsd.runtime import HostRuntime, Hypervisors, Images, Runtime
from vpsd.servers import moving, queries, seen
from vpsd.servers.models import Server, servers
from vpsd.settings import Settings
from vpsd.worker.backup_scheduler import BackupScheduler
from vpsd.worker.biller import Biller
from vpsd.worker.boot_watcher import BootWatcher
from vpsd.worker.event_pruner import EventPruner
from vpsd.worker.followers import Looker
from vpsd.worker.guest_reader import GuestReader
from vpsd.worker.reconcile import Reconciler
from vpsd.worker.runner import Runner
from vpsd.worker.sampler import Sampler
from vpsd.worker.sum_keeper import SumKeeper
from vpsd.worker.thaw_checker import ThawChecker

TINY = {"plan_id": 4, "os_id": 1, "location": "us-west"}


async def never_ticks(seconds: float) -> None:
    """A heartbeat that does not beat: tests that want one pass their own."""
    await asyncio.Event().wait()


class WatchedDirectory(Directory):
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

    async def create(self, key: str, data: bytes) -> bytes:
        await self._called("create")
        return await super().create(key, data)

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
        """The paths of all files but the target's mark."""
        files = (str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())
        return sorted(path for path in files if path != MARK)


L = TypeVar("L", bound=Looker)


def _informed(kind: type[L]) -> type[L]:
    """One that has been told of all servers before each look, as by a reconciler that sweeps."""

    class Informed(kind):  # type: ignore[misc, valid-type]
        async def look(self) -> None:
            async with self._runtime.read() as ctx:
                self.notice(await seen.page(ctx, self._runtime.host_id), everything=True)
            await super().look()

    return Informed


class Cloud:
    """vpsd, and short words for what tests do with it."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.clock = FakeClock()
        self.ids = Ids(random.Random(7))
        self.database = database
        self.settings = settings
        self.hypervisor = Simulator(clock=self.clock)
        self.others: dict[str, Simulator] = {}  # the simulators of further hosts, by the names in their addresses
        self.pools: dict[str, MemoryStore] = {}  # that several of them share
        self.target = WatchedDirectory(settings.backup_folder)
        self.runtime: HostRuntime  # at the host that is there from the beginning
        self.http: httpx.AsyncClient
        self.tokens: dict[str, str] = {}
        self.offered: Catalog

    async def open(self, offered: Catalog, images: Images | None = None) -> None:
        self.offered = offered
        await self.compose(images)
        async with self.runtime.write(OPERATOR) as ctx:
            await catalog.apply(ctx, offered)
            for name in ("alice", "charlie"):
                account = await accounts.add_account(ctx, name)
                ctx = ctx.in_account(account.id)
                await credit.add_credit(ctx, 1000 * MICROS, "to begin with")
                self.tokens[name] = (await tokens.add(ctx, "test")).value

    async def compose(self, images: Images | None = None) -> None:
        """Put the parts together, as `vpsd.main` does."""
        async with self.database.write() as tx:
            instance = await accounts.instance(Ctx(tx, Actor(kind="vpsd"), self.clock, self.ids, self.settings))
        runtime = Runtime(
            database=self.database,
            clock=self.clock,
            ids=self.ids,
            settings=self.settings,
            hypervisors=Hypervisors(self._simulator),
            images=images or SimulatedImages(),
            repository=Repository(self.target, instance, None),
            instance=instance,
            jumps=ClockJumps(self.clock),
        )
        async with runtime.write(OPERATOR) as ctx:
            await hosts.ensure_local(ctx, "simulator", "simulator", "this-one")
            local = await hosts.local(ctx)
            assert local is not None
            # It answers, and somebody looks after it for as long as a test may take.
            await change(ctx.tx, hosts_table, local.id, health=HostHealth.OK, lease_until_ms=1 << 60)
        self.runtime = runtime.at(local, HostStatus(HostHealth.OK))
        self.http = self._http()

    def have_connections(self) -> None:
        """Connect to the hosts anew: their simulators are others."""
        hypervisors = Hypervisors(self._simulator)
        self.runtime = msgspec.structs.replace(self.runtime, hypervisors=hypervisors, hypervisor=self.hypervisor)

    def _simulator(self, address: Address) -> Simulator:
        """Every host has a simulator of its own; the first is `hypervisor`."""
        name = None if address.uri is None else urlsplit(address.uri).netloc
        if name is None:
            return self.hypervisor
        if name not in self.others:
            shared = address.shared_pool
            pool = shared and SharedPool(shared, self.pools.setdefault(shared, MemoryStore()), name)
            self.others[name] = Simulator(clock=self.clock, pool=pool or None)
        return self.others[name]

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app()), base_url="http://vpsd.test")

    def app(self, **settings: Any) -> Asgi:
        """The API, with the settings of this vpsd or some of one's own."""
        own = msgspec.structs.replace(self.settings, **settings)
        return make_app(msgspec.structs.replace(self.runtime, settings=own))

    def set(self, **settings: Any) -> None:
        """Have API and worker go by other settings from now on."""
        self.settings = msgspec.structs.replace(self.settings, **settings)
        self.runtime = msgspec.structs.replace(self.runtime, settings=self.settings)
        self.http = self._http()

    @property
    def instance(self) -> str:
        return self.runtime.instance

    @asynccontextmanager
    async def reading(self, who: str | None = None) -> AsyncIterator[Ctx]:
        """A context to read in: in an account, or in none."""
        async with self.runtime.read(await self._actor(who)) as ctx:
            yield ctx

    @asynccontextmanager
    async def writing(self, who: str | None = None) -> AsyncIterator[Ctx]:
        """A transaction: in an account, or in none."""
        async with self.runtime.write(await self._actor(who)) as ctx:
            yield ctx

    async def _actor(self, who: str | None) -> Actor:
        return Actor(kind="operator", account_id=0 if who is None else (await self.account(who)).id)

    async def offer(self, plan_id: int, **changed: Any) -> None:
        """Have one plan more: the nano with some of it changed."""
        nano = next(plan for plan in self.offered.plans if plan.slug == "nano")
        more = msgspec.structs.replace(nano, id=plan_id, name=f"Plan {plan_id}", slug=f"plan-{plan_id}", **changed)
        async with self.writing() as ctx:
            await catalog.apply(ctx, msgspec.structs.replace(self.offered, plans=[*self.offered.plans, more]))

    async def have_host(self, **facts: Any) -> str:
        """Have the host seen by its worker, with some of its facts changed; its name."""
        seen = msgspec.structs.replace(await self.hypervisor.facts(), **facts)
        async with self.writing() as ctx:
            await hosts.record_facts(ctx, self.runtime.host_id, seen, "ok")
            return (await hosts.row(ctx, self.runtime.host_id)).name

    async def wrong_sums(self) -> list[Difference]:
        async with self.runtime.read() as ctx:
            return [one for sums in SUMS for one in await sums.differences(ctx)]

    async def hosts(self) -> list[Host]:
        """The hosts: the first is there from the beginning."""
        async with self.reading() as ctx:
            return await hosts.list_hosts(ctx)

    async def have_second_host(self, state: HostState = HostState.ENABLED, **options: Any) -> Host:
        """Another host, in that state; `others` has its simulator once it was used."""
        async with self.writing() as ctx:
            host = await hosts.find_by_name(ctx, "second")
            if host is None:
                host = await hosts.add_host(ctx, "second", "simulator", uri="simulator://second", **options)
            await hosts.change_host(ctx, host.id, state=state)
            self._simulator(host.address)
            return await hosts.row(ctx, host.id)

    @property
    def simulators(self) -> list[Simulator]:
        """All hosts."""
        return [self.hypervisor, *self.others.values()]

    def hook(self, moment: str, hook: Hook | None) -> None:
        """Have that called at each call to a host: `before_call`, `in_call` or `after_call`."""
        for simulator in self.simulators:
            setattr(simulator, moment, hook)

    async def migrate(self, server_id: int, host: str | None = None, *, cold: bool = False) -> None:
        """Have a server moved to another host, as the operator asks for it."""
        async with self.runtime.write(OPERATOR) as ctx:
            await moving.migrate(ctx, server_id, host, Faults(), cold=cold)

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
        return Runner(self.runtime, owner, **{"tick": never_ticks, "monotonic": lambda: 0.0, **options})

    def reconciler(self, host: Host | None = None) -> Reconciler:
        return Reconciler(self.runtime if host is None else self.runtime.at(host))

    def biller(self) -> Biller:
        return Biller(self.runtime)

    def backup_scheduler(self) -> BackupScheduler:
        return BackupScheduler(self.runtime)

    def sum_keeper(self) -> SumKeeper:
        return SumKeeper(self.runtime)

    def event_pruner(self) -> EventPruner:
        return EventPruner(self.runtime)

    def thaw_checker(self) -> ThawChecker:
        return _informed(ThawChecker)(self.runtime)

    def boot_watcher(self) -> BootWatcher:
        return _informed(BootWatcher)(self.runtime)

    def sampler(self) -> Sampler:
        return Sampler(self.runtime)

    def guest_reader(self) -> GuestReader:
        return _informed(GuestReader)(self.runtime)

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
            for host in await self.hosts():
                if host.state != HostState.FENCED:
                    await self.reconciler(host).reconcile()
            if not await self.work():
                async with self.reading() as ctx:
                    if not await operations.busy_servers(ctx):
                        return
            self.clock.advance(20)

    async def create(self, name: str = "web", who: str = "alice", **body: Any) -> int:
        answer = await self.post("/api/v1/servers/", {"name": name, **TINY, **body}, who=who)
        assert answer.status_code == 201, answer.text
        server_id: int = answer.json()["id"]
        return server_id

    async def have_server(
        self, name: str = "web", status: Status = Status.ACTIVE, who: str = "alice", **body: Any
    ) -> int:
        """A server of this name, at rest in this status."""
        server_id = await self.create(name, who, **body)
        await self.work()
        if status is Status.STOPPED:
            await self.post(f"/api/v1/servers/{server_id}/stop/", who=who)
            await self.work()
        elif status is not Status.ACTIVE:
            await self.force_status(server_id, status)
        assert await self.status(server_id) == status
        self.clock.advance(1)
        return server_id

    async def force_status(self, server_id: int, status: Status) -> None:
        """Have a server in a status past every rule, as if it had come to rest there now."""
        async with self.database.write() as tx:
            await change(tx, servers, server_id, status=status, error=None, updated_at_ms=self.clock.now_ms())

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
        async with self.reading() as ctx:
            return await queries.row(ctx, server_id)

    async def status(self, server_id: int) -> str:
        return (await self.row(server_id)).status

    async def operations(self, server_id: int, who: str = "alice") -> list[dict[str, Any]]:
        answer = await self.get(f"/api/v1/servers/{server_id}/operations/", who=who)
        results: list[dict[str, Any]] = answer.json()["results"]
        return results

    async def causes(self, server_id: int) -> list[str | None]:
        """What the operator reads of what went wrong, operation by operation, oldest first."""
        async with self.reading() as ctx:
            return [operation.cause for operation in await history.latest(ctx, server_id)][::-1]

    async def addresses(self) -> list[Assignment]:
        async with self.reading() as ctx:
            return await addresses.assignments(ctx)

    async def account(self, who: str = "alice") -> Account:
        async with self.runtime.read() as ctx:
            return await accounts.find_account(ctx, who)

    async def balance(self, who: str = "alice") -> int:
        """In micros."""
        async with self.reading(who) as ctx:
            return await ledger.balance(ctx)

    async def have_balance(self, micros: int, who: str = "alice") -> None:
        """Book what it takes for the balance to be that."""
        missing = micros - await self.balance(who)
        if missing:
            async with self.writing(who) as ctx:
                await credit.add_credit(ctx, missing, "for a test")

    async def token(self, *permissions: str, who: str = "alice", **options: Any) -> str:
        """A token with these permissions, under a name that `who=` takes."""
        name = f"{who}: {' '.join(permissions)}"
        async with self.writing(who) as ctx:
            self.tokens[name] = (await tokens.add(ctx, name, permissions or ("*:*",), **options)).value
        return name

    async def may_everything(self) -> None:
        """Have Alice be the operator as well."""
        self.tokens["alice"] = self.tokens[await self.token("*:*", "operator:*")]

    async def disk(self, server_id: int) -> str:
        """The disk that a server runs from."""
        return disk_name(self.guest(server_id), (await self.row(server_id)).disk)

    def guest(self, server_id: int) -> str:
        return guest_name(self.instance, server_id)
