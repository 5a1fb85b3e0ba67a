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
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.api.app import make_app
from vpsd.api.http.server import Server
from vpsd.api.vps_org.welcome import first_server
from vpsd.backups.keys import read_key
from vpsd.backups.repository import Repository
from vpsd.backups.targets import open_target
from vpsd.catalog import service as catalog
from vpsd.core import db, folder
from vpsd.core.clock import Clock, SystemClock, every
from vpsd.core.context import OPERATOR, Transactions
from vpsd.core.database_clock import PERIOD_SECONDS, DatabaseClock
from vpsd.core.db import UniqueViolation
from vpsd.core.ending import end_all, exit_after
from vpsd.core.files import open_private, sync, write_private
from vpsd.core.ids import Ids
from vpsd.core.jumps import ClockJumps
from vpsd.core.units import GIB
from vpsd.errors import Misconfigured, Unauthenticated
from vpsd.hosts import leases
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, driver_of
from vpsd.hypervisor.libvirt import connect
from vpsd.hypervisor.protocol import HostFacts, Hypervisor
from vpsd.hypervisor.simulator import Simulator, shared_folder
from vpsd.idempotency import service as idempotency
from vpsd.images.catalogued import CataloguedImages, measure_images
from vpsd.images.simulated import SimulatedImages
from vpsd.images.store import ImageStore
from vpsd.migrations import HEAD, schema
from vpsd.operations import service as operations
from vpsd.runtime import Hypervisors, Images, Runtime, Serving
from vpsd.settings import Settings
from vpsd.worker import clock_jumps
from vpsd.worker.backup_scheduler import BackupScheduler
from vpsd.worker.biller import Biller
from vpsd.worker.event_pruner import EventPruner
from vpsd.worker.host_keeper import HostKeeper
from vpsd.worker.repricing import apply_catalog
from vpsd.worker.runner import Runner
from vpsd.worker.sum_keeper import SumKeeper

log = logging.getLogger(__name__)

Say = Callable[[str], None]

_END_SECONDS = 15  # for answers that are under way, 5 s, and for workers to put down what they have


class Part(Enum):
    """What a process of vpsd is."""

    BOTH = "up"
    API = "api"
    WORKER = "worker"


async def serve(settings: Settings, say: Say, part: Part = Part.BOTH, *, new_cloud: bool = False) -> None:
    """Run API, worker or both until SIGINT or SIGTERM; servers go on running.

    `new_cloud`: with a new database also beside what an earlier cloud has left, which stays. Raises `Misconfigured`
    where there shall be several processes, and the database is for one.
    """
    if part is not Part.BOTH and settings.database_url is None:
        raise Misconfigured(
            f"vpsd {part.value}: several processes need PostgreSQL; set VPSD_DATABASE_URL, or start `vpsd up`, which "
            "is API and worker in one process"
        )
    with sole_user(settings), _listening(settings, part) as listener:
        if hidden := folder.hide(settings):
            log.warning("other users could read or change %s: not any more", ", ".join(map(str, hidden)))
        async with open_runtime(settings, say, new_cloud=new_cloud) as runtime:
            for change in await apply_catalog(runtime, catalog_file(settings)):
                log.info("catalogue: %s", change)
            if settings.hypervisor != "simulator":
                async with runtime.write() as ctx:
                    await measure_images(ctx, image_store(settings))
            async with runtime.write() as ctx:
                if settings.database_url is None:  # nobody else works here, so whoever held a lease is dead
                    await operations.end_leases(ctx)
                    await leases.end_all(ctx)
                    await idempotency.end_claims(ctx)
                free = [plan.name for plan in await catalog.list_plans(ctx) if not plan.price_monthly_micros]
            if free:
                say(f"catalogue: no price_monthly, so free: {', '.join(free)}")
            token = await first_token(runtime) if part is not Part.WORKER else None
            if token is not None:
                say(f"token (also in {settings.data_dir / folder.TOKEN}; it is not shown again): {token}")
            await clock_jumps.look_at_start(runtime)
            if part is Part.API:
                runtime.repository.status.status = "elsewhere"
            else:
                await ensure_local_host(runtime, only_if_first=part is Part.WORKER)
            workers = _start_workers(runtime, token is not None, say) if part is not Part.API else []
            if isinstance(runtime.clock, DatabaseClock):
                keep_right = every(runtime.clock, PERIOD_SECONDS, runtime.clock.set_right)
                workers.append(asyncio.create_task(keep_right, name="DatabaseClock"))
            await _until_stopped(settings, runtime.serving, make_app(runtime), listener, workers, say)


def _start_workers(runtime: Runtime, first_start: bool, say: Say) -> list[asyncio.Task[None]]:
    owner = f"{socket.gethostname()[:40]}:{os.getpid()}:{runtime.ids.uuid()[:8]}"

    def greet(facts: HostFacts) -> None:
        if first_start:
            say(first_server(runtime.settings, facts.low_ports))

    workers = (
        HostKeeper(runtime, owner, say, greet),
        Runner(runtime, owner),
        Biller(runtime),
        EventPruner(runtime),
        SumKeeper(runtime),
        BackupScheduler(runtime),
    )
    return [asyncio.create_task(worker.run(), name=type(worker).__name__) for worker in workers]


async def ensure_local_host(runtime: Runtime, *, only_if_first: bool = False) -> None:
    """Have a row for this machine's own host; with `only_if_first` not where there is any host.

    Raises `Misconfigured` where it cannot be used.
    """
    settings = runtime.settings
    machine = folder.mark(settings, runtime.ids)
    with contextlib.suppress(UniqueViolation):  # another process was quicker
        async with runtime.write() as ctx:
            name = socket.gethostname()
            await hosts.ensure_local(
                *(ctx, name, settings.hypervisor, machine),
                is_sole_user=settings.database_url is None,
                only_if_first=only_if_first,
            )
    async with runtime.read() as ctx:
        local = await hosts.local(ctx)
    if local is not None:
        runtime.hypervisors.at(local)


@asynccontextmanager
async def open_runtime(
    settings: Settings, say: Say = lambda _: None, *, new_cloud: bool = False
) -> AsyncIterator[Runtime]:
    """Everything that API and worker work with, and the operator's commands that need the host."""
    async with open_transactions(settings, say, new_cloud=new_cloud) as transactions:
        async with transactions.write() as ctx:
            instance = await accounts.instance(ctx)
        hypervisors = Hypervisors(partial(make_hypervisor, settings, instance, transactions.clock))
        try:
            yield Runtime(
                database=transactions.database,
                clock=transactions.clock,
                ids=transactions.ids,
                settings=settings,
                hypervisors=hypervisors,
                images=make_images(settings),
                repository=make_repository(settings, instance),
                instance=instance,
                jumps=ClockJumps(transactions.clock),
            )
        finally:
            await hypervisors.close()


@asynccontextmanager
async def open_transactions(
    settings: Settings, say: Say = lambda _: None, *, new_cloud: bool = False
) -> AsyncIterator[Transactions]:
    """The database, migrated; a new one with the catalogue that vpsd starts with.

    Raises `Misconfigured` where a new one would stand beside what an earlier cloud has left (`new_cloud`: where there
    is no new one).
    """
    folder.prepare(settings)
    came_from = await schema.prepare(settings.url, partial(_before_new, settings, new_cloud))
    if new_cloud and came_from != "nothing":
        raise Misconfigured("there is a cloud with this database already: leave --new-cloud out")
    if came_from is not None:
        say(f"database: migrated from {came_from} to {HEAD}")
    database = await db.connect(settings.url)
    transactions = Transactions(database=database, clock=_clock(settings, database), ids=Ids(), settings=settings)
    try:
        if isinstance(transactions.clock, DatabaseClock):
            await transactions.clock.set_right()
        if came_from == "nothing":
            await apply_catalog(transactions, catalog_file(settings))
        yield transactions
    finally:
        await database.close()


def _clock(settings: Settings, database: db.Database) -> Clock:
    return SystemClock() if settings.url.startswith("sqlite") else DatabaseClock(SystemClock(), database)


def _before_new(settings: Settings, new_cloud: bool) -> None:
    token = settings.data_dir / folder.TOKEN
    if not new_cloud:
        folder.refuse_traces(settings)
    elif token.exists():
        log.warning("%s is of an earlier cloud: it is called %s now", token, folder.set_aside(token).name)


_OWN = Address()


def make_hypervisor(settings: Settings, instance: str, clock: Clock, address: Address = _OWN) -> Hypervisor:
    """The driver of a host; it connects when it is first used."""
    uri, pool = address.uri, None if address.pool is None else Path(address.pool)
    if uri is None:
        uri = "simulator:" if settings.hypervisor == "simulator" else settings.libvirt_uri
        pool = pool or settings.pool_dir
    if uri is not None and driver_of(uri) == "simulator":
        name = "-".join(filter(None, ("simulator", urlsplit(uri).netloc)))
        path, seconds = settings.data_dir / f"{name}.journal", settings.simulator_boot_seconds
        shared = shared_folder(settings.data_dir, name, address.shared_pool, address.pool)
        return Simulator(path, clock, seconds, settings.storage_reserve_mb, shared)
    connect.require_python_binding()
    # Imported here: it needs libvirt's libraries, and the simulator does not.
    from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor

    return LibvirtHypervisor(
        instance,
        settings.data_dir,
        uri=uri,
        pool_path=pool,
        virt_type=settings.virt_type,
        storage_reserve_mb=settings.storage_reserve_mb,
        shared_pool=address.shared_pool,
    )


def make_images(settings: Settings) -> Images:
    """Where images come from."""
    if settings.hypervisor == "simulator":
        return SimulatedImages()
    return CataloguedImages(image_store(settings))


def make_repository(settings: Settings, instance: str) -> Repository:
    """Where backups are kept; nothing is asked of it yet."""
    key = None if settings.backup_key_file is None else read_key(settings.backup_key_file)
    return Repository(open_target(settings), instance, key)


def image_folder(settings: Settings) -> Path:
    """Where images are on this machine."""
    return settings.data_dir / "images"


def image_store(settings: Settings) -> ImageStore:
    """The images on this machine."""
    return ImageStore(image_folder(settings), limit_bytes=settings.image_max_gb * GIB)


def catalog_file(settings: Settings) -> Path:
    """The catalogue file of the data folder; vpsd's own at the first start."""
    path = settings.data_dir / "catalog.toml"
    if not path.exists():
        path.write_text(catalog.default_text(), encoding="utf-8")
    return path


@contextmanager
def sole_user(settings: Settings) -> Iterator[None]:
    """Keep a second vpsd off this data folder's SQLite; raises `Misconfigured` when there is one.

    On PostgreSQL any number of processes may share a folder: what they share is leased row by row.
    """
    folder.prepare(settings)
    if settings.database_url is not None:
        yield
        return
    with os.fdopen(open_private(settings.data_dir / "vpsd.lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Misconfigured(
                f"another vpsd works in {settings.data_dir}; stop it, or set VPSD_DATA_DIR to another folder"
            ) from None
        yield


async def first_token(transactions: Transactions) -> str | None:
    """At the very first start: an account and a token, kept in the data folder; None ever after.

    Raises `Misconfigured` rather than write over a token that is there. The file gets its name after the commit: what
    has that name is valid, or was.
    """
    path = transactions.settings.data_dir / folder.TOKEN
    made = path.with_name(f".{path.name}.made")
    async with transactions.write(OPERATOR) as ctx:
        if not await tokens.any_token(ctx):
            if path.exists():
                raise Misconfigured(
                    f"the database has no token, and {path} is one of another cloud. Is it the right database? Put the "
                    "right one in its place; or, if that token is of no use any more, move its file away"
                )
            account = await accounts.add_account(ctx, "default", credit_limit_micros=None)  # the operator's own
            token = (await tokens.add(ctx.in_account(account.id), "first")).value
            # Written before the commit: a token that nobody can read would be worse than one that is not valid yet.
            write_private(made, f"{token}\n")
        elif not made.exists():
            return None
        else:
            token = made.read_text().strip()
            try:
                await tokens.authenticate(ctx, token, None, None)
            except Unauthenticated:
                made.unlink()  # of a first start that ended before its commit; by now there is another
                return None
    with contextlib.suppress(FileNotFoundError):  # another process that shares the folder was faster
        made.rename(path)
    sync(path.parent)
    return token


@contextmanager
def _listening(settings: Settings, part: Part) -> Iterator[socket.socket | None]:
    if part is Part.WORKER:
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
    settings: Settings,
    serving: Serving,
    app: Any,
    listener: socket.socket | None,
    workers: list[asyncio.Task[None]],
    say: Say,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    tasks, server = list(workers), None
    if listener is not None:
        server = Server.of(app, settings)
        tasks.insert(0, asyncio.create_task(server.serve([listener]), name="API"))
        say(f"listening on http://{settings.listen}")
    waiting = asyncio.ensure_future(stop.wait())
    await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for number in (signal.SIGINT, signal.SIGTERM):  # a second one ends the process at once
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
    say("stopping; servers go on running")
    serving.is_ending = True
    if server is not None and settings.drain_seconds:  # a balancer sees it, and sends its requests elsewhere
        await asyncio.wait(tasks, timeout=settings.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
    exit_after(_END_SECONDS, partial(_say_left, loop, say))
    if server is not None:
        server.should_exit = True
        await asyncio.wait({tasks[0]})
    await end_all(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


def _say_left(loop: asyncio.AbstractEventLoop, say: Say) -> None:
    """Say what did not end in time: the next start, or another worker, takes it up."""
    tasks = [task.get_name() for task in asyncio.all_tasks(loop)]
    threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
    named = sorted(name for name in tasks + threads if not name.startswith(("Task-", "MainThread")))
    left = ", ".join(named) or "nothing that has a name"
    say(f"stopped after {_END_SECONDS} s without: {left}")
