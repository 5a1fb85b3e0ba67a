"""The composition root: settings become a database, a hypervisor, a clock, and they become API and worker.

The only file that knows everyone.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvicorn

from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.api.app import make_app
from vpsd.api.cloud import Cloud, HostStatus
from vpsd.backups.repository import Repository, read_key
from vpsd.backups.targets import open_target
from vpsd.billing import service as billing
from vpsd.catalog import service as catalog
from vpsd.core import db
from vpsd.core.clock import Clock, SystemClock
from vpsd.core.db import Database
from vpsd.core.ids import Ids
from vpsd.errors import Misconfigured, Unavailable
from vpsd.hosts import service as hosts
from vpsd.hypervisor.libvirt import connect
from vpsd.hypervisor.protocol import Hypervisor
from vpsd.hypervisor.simulator import Simulator
from vpsd.images.catalogued import CataloguedImages
from vpsd.images.simulated import SimulatedImages
from vpsd.images.store import ImageStore
from vpsd.migrations import HEAD, schema
from vpsd.servers.jobs import Images, World
from vpsd.settings import Settings
from vpsd.welcome import first_server
from vpsd.worker.biller import Biller
from vpsd.worker.keeper import Keeper
from vpsd.worker.reconcile import Reconciler
from vpsd.worker.runner import Runner
from vpsd.worker.sampler import Sampler

log = logging.getLogger(__name__)

Say = Callable[[str], None]

_HOST_POLL_SECONDS = 5.0


def make_hypervisor(settings: Settings, instance: str, clock: Clock) -> Hypervisor:
    """The driver that the settings ask for; it connects when it is first used."""
    if settings.hypervisor == "simulator":
        path = settings.data_dir / "simulator.journal"
        return Simulator(path, clock, settings.simulator_boot_seconds)
    connect.require_python_binding()
    # Imported here: it needs libvirt's libraries, and the simulator does not.
    from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor

    return LibvirtHypervisor(
        instance,
        settings.data_dir,
        uri=settings.libvirt_uri,
        pool_path=settings.pool_dir,
        virt_type=settings.virt_type,
    )


def make_images(settings: Settings) -> Images:
    """Where images come from."""
    if settings.hypervisor == "simulator":
        return SimulatedImages()
    return CataloguedImages(ImageStore(image_folder(settings)))


def make_repository(settings: Settings, instance: str) -> Repository:
    """Where backups are kept; nothing is asked of it yet."""
    key = None if settings.backup_key_file is None else read_key(settings.backup_key_file)
    return Repository(open_target(settings), instance, key)


def image_folder(settings: Settings) -> Path:
    """Where images lie on this machine."""
    return settings.data_dir / "images"


def prepare_folder(settings: Settings) -> None:
    """Have the data folder; raises `Misconfigured` where there can be none."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"VPSD_DATA_DIR={settings.data_dir} cannot be used: {error.strerror}") from error
    if not os.access(settings.data_dir, os.W_OK | os.X_OK):
        raise Misconfigured(f"VPSD_DATA_DIR={settings.data_dir} cannot be used: this user may not write to it")


@asynccontextmanager
async def open_database(settings: Settings, say: Say = lambda _: None) -> AsyncIterator[Database]:
    """The database, migrated; a new one with the catalogue that vpsd starts with."""
    prepare_folder(settings)
    came_from = await schema.prepare(settings.url)
    if came_from is not None:
        say(f"database: migrated from {came_from} to {HEAD}")
    database = await db.connect(settings.url)
    try:
        if came_from == "nothing":
            await apply_catalog(database, catalog_file(settings))
        yield database
    finally:
        await database.close()


async def apply_catalog(database: Database, path: Path) -> list[str]:
    """Take over what a catalogue file says and tell what changed; raises `Misconfigured` or `Invalid`."""
    offered, clock = catalog.read_file(path), SystemClock()
    async with database.write() as tx:
        changes = await catalog.apply(tx, clock, offered)
        plans = await catalog.list_plans(tx)
    for plan in plans:
        count = await billing.schedule_prices(database, clock, plan)
        if count:
            changes.append(f"plans {plan.id}: the price to come of {count} servers is changed")
    return changes


def catalog_file(settings: Settings) -> Path:
    """The catalogue file of the data folder; vpsd's own at the first start."""
    path = settings.data_dir / "catalog.toml"
    if not path.exists():
        path.write_text(catalog.default_text(), encoding="utf-8")
    return path


@asynccontextmanager
async def open_world(settings: Settings, say: Say = lambda _: None) -> AsyncIterator[World]:
    """Everything that works on servers, for the worker and for the operator's commands."""
    clock = SystemClock()
    async with open_database(settings, say) as database:
        async with database.write() as tx:
            instance = await accounts.instance(tx, Ids())
        hypervisor = make_hypervisor(settings, instance, clock)
        try:
            repository = make_repository(settings, instance)
            yield World(database, hypervisor, make_images(settings), repository, clock, settings, instance)
        finally:
            await hypervisor.close()


@contextmanager
def sole_user(settings: Settings) -> Iterator[None]:
    """Keep a second vpsd off this data folder's SQLite; raises `Misconfigured` when there is one.

    On PostgreSQL any number of processes may share a folder: what they share is leased row by row.
    """
    prepare_folder(settings)
    if settings.database_url is not None:
        yield
        return
    with (settings.data_dir / "vpsd.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"another vpsd works in {settings.data_dir}; stop it, or set VPSD_DATA_DIR to another folder"
            ) from None
        yield


async def first_token(database: Database, settings: Settings) -> str | None:
    """At the very first start: an account and a token, kept in the data folder; None ever after."""
    clock, ids = SystemClock(), Ids()
    path = settings.data_dir / "token"
    async with database.write() as tx:
        if await tokens.any_token(tx):
            return None
        account = await accounts.add_account(tx, ids, clock, "default", credit_limit_micros=None)  # the operator's own
        _, token = await tokens.add(tx, ids, clock, accounts.operator(account.id), "first")
        path.unlink(missing_ok=True)
        # Written before the commit: a token that nobody can read would be worse than one that is not valid yet.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
    return token


async def serve(settings: Settings, say: Say) -> None:
    """Run API, worker or both until SIGINT or SIGTERM; servers go on running."""
    with sole_user(settings), _listening(settings) as listener:
        async with open_world(settings, say) as world:
            for change in await apply_catalog(world.database, catalog_file(settings)):
                log.info("catalogue: %s", change)
            async with world.database.read() as tx:
                free = [plan.name for plan in await catalog.list_plans(tx) if not plan.price_monthly_micros]
            if free:
                say(f"catalogue: no price_monthly, so free: {', '.join(free)}")
            host = HostStatus()
            app = make_app(Cloud(world.database, world.clock, Ids(), host, settings))
            token = await first_token(world.database, settings) if settings.role != "worker" else None
            if token is not None:
                say(f"token (also in {settings.data_dir / 'token'}): {token}")
            tasks = _workers(world, host, token, say) if settings.role != "api" else []
            if settings.role == "api":
                host.status = "elsewhere"
            await _until_stopped(settings, app, listener, tasks, say)


def _workers(world: World, host: HostStatus, token: str | None, say: Say) -> list[asyncio.Task[None]]:
    owner = f"{socket.gethostname()}:{os.getpid()}:{Ids().uuid()[:8]}"
    return [
        asyncio.create_task(_keep_host(world, host, token, say)),
        asyncio.create_task(Runner(world, Ids(), owner).run()),
        asyncio.create_task(Reconciler(world, Ids()).run()),
        asyncio.create_task(Sampler(world).run()),
        asyncio.create_task(Biller(world, Ids()).run()),
        asyncio.create_task(Keeper(world, Ids()).run()),
    ]


async def _keep_host(world: World, host: HostStatus, token: str | None, say: Say) -> None:
    """Keep what /health says of the host true; a new token is welcomed once the host is known."""
    while True:
        try:
            facts = await world.hypervisor.facts()
            if host.facts != facts:
                async with world.database.write() as tx:
                    await hosts.note(tx, world.clock, facts)
            if host.facts is None or msgspec.structs.replace(host.facts, storage_gb=facts.storage_gb) != facts:
                say(f"hypervisor: {facts.driver} {facts.version} at {facts.uri}")
                say(f"guests: {facts.virt_type} ({facts.virt_reason})")
            if token is not None:
                say(first_server(world.settings, token, facts.low_ports))
                token = None
            host.status, host.error, host.facts = "ok", None, facts
        except Exception as error:
            if host.error != str(error):
                say(f"hypervisor: {error}")
                if not isinstance(error, Unavailable):
                    log.debug("the hypervisor cannot be used", exc_info=error)
            host.status, host.error = "unavailable", str(error)
        await world.clock.sleep(_HOST_POLL_SECONDS)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket | None]:
    if settings.role == "worker":
        yield None
        return
    host, port = settings.host_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise Misconfigured(f"VPSD_LISTEN={settings.listen} cannot be used: {error.strerror}") from error
        yield listener


async def _until_stopped(
    settings: Settings, app: Any, listener: socket.socket | None, tasks: list[asyncio.Task[None]], say: Say
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    server = None
    if listener is not None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # vpsd writes its own
            lifespan="on",
            http="httptools",
            timeout_graceful_shutdown=5,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies,
        )
        server = _Server(config)
        tasks.insert(0, asyncio.create_task(server.serve([listener])))
        say(f"listening on http://{settings.listen}")
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    say("stopping; servers go on running")
    if server is not None:
        server.should_exit = True
        await asyncio.wait({tasks.pop(0)})
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


class _Server(uvicorn.Server):
    """uvicorn without its own ideas about signals: vpsd stops it together with the worker."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
