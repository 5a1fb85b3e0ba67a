"""Takes operations up: lease, step, save, until each has come to rest.

No transaction is open while a step talks to the host. What a step did is saved only while the lease is still this
worker's; one that lost it drops what it holds. A worker that dies leaves a lease that runs out, and another goes on.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from vpsd.core.ids import Ids
from vpsd.errors import Unavailable, Unusable, VpsdError
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.operations.service import Lease, LostLease
from vpsd.servers import rows
from vpsd.servers.backup_steps import TIDY, settle
from vpsd.servers.flows import FLOWS
from vpsd.servers.jobs import Job, Superseded, World
from vpsd.servers.lifecycle import RULES, Command, Status

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0  # the net under the wake-ups
_LONGEST_PAUSE_SECONDS = 30
_LONGEST_ENDLESS_PAUSE_SECONDS = 300

Tick = Callable[[float], Awaitable[None]]


class Runner:
    """A worker: as many operations at once as the settings say."""

    def __init__(self, world: World, ids: Ids, owner: str, tick: Tick = asyncio.sleep) -> None:
        self._world = world
        self._ids = ids
        self._owner = owner
        self._tick = tick  # real time, whatever the world's clock says: a lease is about this process being alive
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving: set[asyncio.Task[None]] = set()  # those of them that move whole disks
        world.database.on_operation(self._wake.set)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._fill()
                except Exception:
                    log.exception("the worker could not take up operations; it goes on")
                waiting = asyncio.ensure_future(self._wake.wait())
                await asyncio.wait({waiting, *self._tasks}, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
                waiting.cancel()
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _fill(self) -> None:
        workers = self._world.settings.workers
        while len(self._tasks) < workers:
            # Backups may take hours, and a night has many: they never take the last hands from who wants to start.
            operation = await self._claim(quick=len(self._moving) >= max(1, workers // 2))
            if operation is None:
                return
            task = asyncio.create_task(self._work_logged(operation), name=f"operation {operation.id}")
            for tasks in (self._tasks, *([self._moving] if operation.command in operations.MOVES_DISKS else [])):
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    async def run_once(self) -> bool:
        """Take one operation as far as it goes now; False when none is due."""
        operation = await self._claim()
        if operation is None:
            return False
        await self.work(operation)
        return True

    async def _claim(self, *, quick: bool = False) -> Operation | None:
        async with self._world.database.write() as tx:
            return await operations.claim(tx, self._world.clock, self._owner, quick=quick)

    async def _work_logged(self, operation: Operation) -> None:
        try:
            await self.work(operation)
        except Exception:
            log.exception("operation %s: its lease runs out and it is taken up again", operation.id)

    async def work(self, operation: Operation) -> None:
        """Carry a leased operation to its end, to its next try, or to the command that takes over."""
        lease = Lease.of(operation)
        async with self._world.database.read() as tx:
            server = await rows.get(tx, operation.server_id)
        job = Job(self._world, operation, server)
        job.superseded = operation.successor is not None
        heartbeat = asyncio.create_task(self._keep_lease(lease, job))
        try:
            await self._carry_out(operation, job)
            await self._succeed(operation, lease, job)
        except LostLease:
            log.warning("operation %s: another worker has taken it over", operation.id)
        except Superseded:
            await self._tidy(job)
            await self._hand_over(operation, lease)
        except Unusable as error:
            await self._fail(operation, lease, job, str(error))
        except Unavailable as error:
            await self._try_again(operation, lease, job, str(error))
        except Exception as error:
            log.exception("operation %s: %s met an error of vpsd's own", operation.id, operation.command)
            text = str(error) if isinstance(error, VpsdError) else f"internal error: {error!r}"
            await self._try_again(operation, lease, job, text)
        finally:
            heartbeat.cancel()
            await asyncio.wait({heartbeat})

    async def _carry_out(self, operation: Operation, job: Job) -> None:
        lease = Lease.of(operation)
        clock = self._world.clock
        if operation.deadline_at_ms is not None and (
            clock.now_ms() > operation.deadline_at_ms or operation.attempts > operations.MAX_ATTEMPTS
        ):
            raise Unusable(f"Given up after {operation.attempts - 1} attempts: {operation.error or 'the worker died'}")
        flow = FLOWS[Command(operation.command)]
        names = [step.__name__ for step in flow]
        first = names.index(operation.step) if operation.step in names else 0
        for index in range(first, len(flow)):
            if job.superseded:
                raise Superseded
            async with self._world.database.write() as tx:
                await operations.save_step(tx, lease, names[index], index / len(flow))
            await job.refresh()
            job.step = (index, len(flow))
            await flow[index](job)

    async def _keep_lease(self, lease: Lease, job: Job) -> None:
        while True:
            await self._tick(operations.LEASE_SECONDS / 5)
            try:
                async with self._world.database.write() as tx:
                    job.superseded |= await operations.renew(tx, self._world.clock, lease) is not None
            except LostLease:
                return
            except Exception:
                log.exception(
                    "operation %s: the lease could not be renewed; the next try comes soon", lease.operation_id
                )

    async def _succeed(self, operation: Operation, lease: Lease, job: Job) -> None:
        await self._rest(operation, lease, RULES[Command(operation.command)].success, None, job.result)

    async def _tidy(self, job: Job) -> str | None:
        tidy = TIDY.get(Command(job.operation.command))
        try:
            if tidy is not None:
                await job.refresh()
                return await tidy(job)
        except Exception as error:  # what is left is found by `vpsd check`; a lost lease ends what follows, too
            log.warning("operation %s: could not tidy up behind it: %s", job.operation.id, error)
        return None

    async def _fail(self, operation: Operation, lease: Lease, job: Job, error: str) -> None:
        if RULES[Command(operation.command)].minutes is None:  # tried until it is done
            await self._try_again(operation, lease, job, error)
            return
        said = await self._tidy(job)
        error = error if said is None else f"{error} {said}"
        log.warning("server %s: %s failed: %s", operation.server_id, operation.command, error)
        await self._rest(operation, lease, RULES[Command(operation.command)].failure, error, None)

    async def _rest(
        self, operation: Operation, lease: Lease, status: Status | None, error: str | None, detail: str | None
    ) -> None:
        clock = self._world.clock
        try:
            async with self._world.database.write() as tx:
                await rows.lock(tx, operation.server_id)  # before the operation, as requests do
                if await operations.renew(tx, clock, lease) is not None:
                    raise Superseded
                await operations.finish(tx, clock, lease, error, detail)
                await settle(tx, self._world, operation, error)
                if status is not None:
                    reason = error if status is Status.ERROR else None
                    await rows.set_status(tx, operation.server_id, status, reason, clock.now_ms())
        except Superseded:
            await self._hand_over(operation, lease)
        except LostLease:
            log.warning("operation %s: another worker has taken it over", operation.id)

    async def _hand_over(self, operation: Operation, lease: Lease) -> None:
        try:
            async with self._world.database.write() as tx:
                await rows.lock(tx, operation.server_id)
                successor = await operations.renew(tx, self._world.clock, lease)
                assert successor is not None
                await operations.hand_over(tx, self._ids, self._world.clock, lease, operation.server_id, successor)
                await settle(tx, self._world, operation, f"It gave way to the server's {successor.command}.")
        except LostLease:
            log.warning("operation %s: another worker has taken it over", operation.id)

    async def _try_again(self, operation: Operation, lease: Lease, job: Job, error: str) -> None:
        now = self._world.clock.now_ms()
        endless = RULES[Command(operation.command)].minutes is None
        longest = _LONGEST_ENDLESS_PAUSE_SECONDS if endless else _LONGEST_PAUSE_SECONDS
        pause_seconds = min(longest, 2 ** min(operation.attempts - 1, 16))
        run_at_ms = now + pause_seconds * 1000
        late = operation.deadline_at_ms is not None and run_at_ms > operation.deadline_at_ms
        if not endless and (late or operation.attempts >= operations.MAX_ATTEMPTS):
            await self._fail(operation, lease, job, f"Given up after {operation.attempts} attempts: {error}")
            return
        log.warning("operation %s: tried again in %s s: %s", operation.id, pause_seconds, error)
        try:
            async with self._world.database.write() as tx:
                await operations.release(tx, lease, error, run_at_ms)
        except LostLease:
            log.warning("operation %s: another worker has taken it over", operation.id)
