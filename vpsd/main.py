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

import uvicorn

from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.api.app import make_app
from vpsd.api.vps_org.welcome import first_server
from vpsd.backups.repository import Repository, read_key
from vpsd.backups.targets import open_target
from vpsd.catalog import service as catalog
from vpsd.core import db
from vpsd.core.clock import Clock, SystemClock
from vpsd.core.context import OPERATOR, Transactions
from vpsd.core.ids import Ids
from vpsd.errors import Misconfigured
from vpsd.hosts.status import HostStatus
from vpsd.hypervisor.libvirt import connect
from vpsd.hypervisor.protocol import HostFacts, Hypervisor
from vpsd.hypervisor.simulator import Simulator
from vpsd.images.catalogued import CataloguedImages, measure_images
from vpsd.images.simulated import SimulatedImages
from vpsd.images.store import ImageStore
from vpsd.migrations import HEAD, schema
from vpsd.operations import service as operations
from vpsd.runtime import Images, Runtime
from vpsd.settings import Settings
from vpsd.worker.backup_scheduler import BackupScheduler
from vpsd.worker.biller import Biller
from vpsd.worker.boot_watcher import BootWatcher
from vpsd.worker.event_pruner import EventPruner
from vpsd.worker.guest_reader import GuestReader
from vpsd.worker.host_watcher import HostWatcher
from vpsd.worker.reconcile import Reconciler
from vpsd.worker.repricing import apply_catalog
from vpsd.worker.runner import Runner
from vpsd.worker.sampler import Sampler
from vpsd.worker.thaw_checker import ThawChecker

log = logging.getLogger(__name__)

Say = Callable[[str], None]


async def serve(settings: Settings, say: Say) -> None:
    """Run API, worker or both until SIGINT or SIGTERM; servers go on running."""
    with sole_user(settings), _listening(settings) as listener:
        async with open_runtime(settings, say) as runtime:
            for change in await apply_catalog(runtime, catalog_file(settings)):
                log.info("catalogue: %s", change)
            if settings.hypervisor != "simulator":
                async with runtime.write() as ctx:
                    await measure_images(ctx, ImageStore(image_folder(settings)))
            async with runtime.write() as ctx:
                if settings.database_url is None:  # nobody else works here, so whoever held a lease is dead
                    await operations.end_leases(ctx)
                free = [plan.name for plan in await catalog.list_plans(ctx) if not plan.price_monthly_micros]
            if free:
                say(f"catalogue: no price_monthly, so free: {', '.join(free)}")
            token = await first_token(runtime) if settings.role != "worker" else None
            if token is not None:
                say(f"token (also in {settings.data_dir / 'token'}): {token}")
            if settings.role == "api":
                runtime.host.status = runtime.repository.status.status = "elsewhere"
            workers = _start_workers(runtime, token, say) if settings.role != "api" else []
            await _until_stopped(settings, make_app(runtime), listener, workers, say)


def _start_workers(runtime: Runtime, token: str | None, say: Say) -> list[asyncio.Task[None]]:
    owner = f"{socket.gethostname()}:{os.getpid()}:{runtime.ids.uuid()[:8]}"

    def greet(facts: HostFacts) -> None:
        if token is not None:
            say(first_server(runtime.settings, token, facts.low_ports))

    workers = (
        HostWatcher(runtime, say, greet),
        Runner(runtime, owner),
        Reconciler(runtime),
        BootWatcher(runtime),
        Sampler(runtime),
        GuestReader(runtime),
        Biller(runtime),
        EventPruner(runtime),
        BackupScheduler(runtime),
        ThawChecker(runtime),
    )
    return [asyncio.create_task(worker.run()) for worker in workers]


@asynccontextmanager
async def open_runtime(settings: Settings, say: Say = lambda _: None) -> AsyncIterator[Runtime]:
    """Everything that API and worker work with, and the operator's commands that need the host."""
    async with open_transactions(settings, say) as transactions:
        async with transactions.write() as ctx:
            instance = await accounts.instance(ctx)
        hypervisor = make_hypervisor(settings, instance, transactions.clock)
        try:
            yield Runtime(
                database=transactions.database,
                clock=transactions.clock,
                ids=transactions.ids,
                settings=settings,
                hypervisor=hypervisor,
                images=make_images(settings),
                repository=make_repository(settings, instance),
                instance=instance,
                host=HostStatus(),
            )
        finally:
            await hypervisor.close()


@asynccontextmanager
async def open_transactions(settings: Settings, say: Say = lambda _: None) -> AsyncIterator[Transactions]:
    """The database, migrated; a new one with the catalogue that vpsd starts with."""
    prepare_folder(settings)
    came_from = await schema.prepare(settings.url)
    if came_from is not None:
        say(f"database: migrated from {came_from} to {HEAD}")
    database = await db.connect(settings.url)
    transactions = Transactions(database=database, clock=SystemClock(), ids=Ids(), settings=settings)
    try:
        if came_from == "nothing":
            await apply_catalog(transactions, catalog_file(settings))
        yield transactions
    finally:
        await database.close()


def make_hypervisor(settings: Settings, instance: str, clock: Clock) -> Hypervisor:
    """The driver that the settings ask for; it connects when it is first used."""
    if settings.hypervisor == "simulator":
        path = settings.data_dir / "simulator.journal"
        return Simulator(path, clock, settings.simulator_boot_seconds, settings.storage_reserve_mb)
    connect.require_python_binding()
    # Imported here: it needs libvirt's libraries, and the simulator does not.
    from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor

    return LibvirtHypervisor(
        instance,
        settings.data_dir,
        uri=settings.libvirt_uri,
        pool_path=settings.pool_dir,
        virt_type=settings.virt_type,
        storage_reserve_mb=settings.storage_reserve_mb,
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
    """Where images are on this machine."""
    return settings.data_dir / "images"


def catalog_file(settings: Settings) -> Path:
    """The catalogue file of the data folder; vpsd's own at the first start."""
    path = settings.data_dir / "catalog.toml"
    if not path.exists():
        path.write_text(catalog.default_text(), encoding="utf-8")
    return path


def prepare_folder(settings: Settings) -> None:
    """Have the data folder; raises `Misconfigured` where there can be none."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"VPSD_DATA_DIR={settings.data_dir} cannot be used: {error.strerror}") from error
    if not os.access(settings.data_dir, os.W_OK | os.X_OK):
        raise Misconfigured(f"VPSD_DATA_DIR={settings.data_dir} cannot be used: this user may not write to it")


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


async def first_token(transactions: Transactions) -> str | None:
    """At the very first start: an account and a token, kept in the data folder; None ever after."""
    path = transactions.settings.data_dir / "token"
    async with transactions.write(OPERATOR) as ctx:
        if await tokens.any_token(ctx):
            return None
        account = await accounts.add_account(ctx, "default", credit_limit_micros=None)  # the operator's own
        token = (await tokens.add(ctx.in_account(account.id), "first")).value
        path.unlink(missing_ok=True)
        # Written before the commit: a token that nobody can read would be worse than one that is not valid yet.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
    return token


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
    settings: Settings, app: Any, listener: socket.socket | None, workers: list[asyncio.Task[None]], say: Say
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    tasks, server = list(workers), None
    if listener is not None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,  # vpsd writes its own
            lifespan="on",
            http="httptools",
            timeout_graceful_shutdown=5,
            proxy_headers=False,  # `vpsd.api.http.addresses` reads them
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
