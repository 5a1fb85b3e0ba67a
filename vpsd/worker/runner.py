"""Takes operations up: lease, step, save, until each has come to rest.

No transaction is open while a step talks to the host. What a step did is saved only while the lease is still this
worker's; one that lost it drops what it holds. A worker that dies leaves a lease that runs out, and another goes on.

A worker that cannot renew its lease, or was stopped, ends its step by its own clock before the lease does. What it may
still have under way on the host is told from what the next one does by `Owner` (docs/decisions/0013).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

from vpsd.core.clock import every
from vpsd.core.context import Ctx
from vpsd.core.ending import end_all, is_ending
from vpsd.errors import DatabaseUnavailable, Misconfigured, Unavailable, Unusable
from vpsd.flows.job import Job, LeaseClock, Superseded
from vpsd.flows.table import CLEAN_UP, CLEANS_UP_FIRST, LEAVES_NOTHING, LOOK_THEMSELVES, steps_of
from vpsd.hosts import service as hosts
from vpsd.hosts.models import HostHealth
from vpsd.hypervisor.owner import TakenOver
from vpsd.lifecycle import ENDS_GUEST, RULES, Command
from vpsd.operations import service as operations
from vpsd.operations.models import Operation
from vpsd.operations.service import CLEAN_UP_STEP, Claimed, Failure, LostLease
from vpsd.runtime import Runtime
from vpsd.servers import queries as servers
from vpsd.worker import clock_jumps, waiting
from vpsd.worker.closing import close, record_end

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0  # the net under the wake-ups
_LONGEST_PAUSE_SECONDS = 30
_LEAST_BEAT_SECONDS = 0.1

Tick = Callable[[float], Awaitable[None]]


class Runner:
    """A worker: as many operations at once as the settings say."""

    def __init__(
        self,
        runtime: Runtime,
        owner: str,
        tick: Tick = asyncio.sleep,
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        self._runtime = runtime
        self._owner = owner
        self._tick = tick  # real time, whatever the clock says: a lease is about this process being alive
        self._monotonic = monotonic or runtime.clock.monotonic
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._moving: set[asyncio.Task[None]] = set()  # those of them that move whole disks
        self._slots: Counter[int | None] = Counter()  # how many of them are at a host
        runtime.database.on_operation(self._wake.set)

    async def run(self) -> None:
        """Work until cancelled."""
        try:
            await every(self._runtime.clock, _POLL_SECONDS, self._fill, wake=self._wake)
        finally:
            await end_all(self._tasks)

    async def _fill(self) -> None:
        while (free := self._runtime.settings.workers - len(self._tasks)) > 0 and not is_ending():
            claimed, since = await self._claim_several(free)
            for operation in claimed:
                task = asyncio.create_task(self._work_logged(operation, since), name=f"operation {operation.id}")
                for tasks in (self._tasks, *([self._moving] if _moves_disks(operation) else [])):
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                self._slots[operation.at_host] += 1
                task.add_done_callback(partial(self._done, operation))
            if len(claimed) < free:
                return

    def _done(self, operation: Claimed, _: object) -> None:
        self._slots[operation.at_host] -= 1
        self._wake.set()

    async def run_once(self) -> bool:
        """Take one operation as far as it goes now; False when none is due."""
        claimed = await self._claim()
        if claimed is None:
            return False
        await self.work(*claimed)
        return True

    async def _claim(self) -> tuple[Operation, float] | None:
        """An operation that is due, and when its lease was asked for."""
        claimed, since = await self._claim_several(1)
        return (claimed[0], since) if claimed else None

    async def _claim_several(self, most: int) -> tuple[list[Claimed], float]:
        """Operations that are due, as many as there are at most, and when their leases were asked for."""
        await clock_jumps.look(self._runtime)
        # By a clock that was just set leases seem to have run out whose workers live: they renew them first.
        take_over = not self._runtime.jumps.within(operations.LEASE_SECONDS)
        # Backups may take hours, and a night has many: they never take the last worker slots from who wants to start.
        most_moving = max(1, self._runtime.settings.workers // 2)
        claimed: list[Claimed] = []
        since = self._monotonic()
        async with self._write() as ctx:
            is_alone = await self._has_one_host(ctx)
            while len(claimed) < most:
                quick = len(self._moving) + sum(map(_moves_disks, claimed)) >= most_moving
                full = [] if is_alone else self._full_hosts(claimed)
                operation = await operations.claim(ctx, self._owner, quick=quick, take_over=take_over, full_hosts=full)
                if operation is None:
                    break
                claimed.append(operation)
        return claimed, since

    async def _has_one_host(self, ctx: Ctx) -> bool:
        """Whether there is nobody to leave slots to."""
        return self._runtime.settings.host_workers is None and await hosts.count_present(ctx) == 1

    def _full_hosts(self, beside: list[Claimed]) -> list[int]:
        """The hosts that have all the slots that one may have: one that hangs must leave some to the others."""
        settings = self._runtime.settings
        most = settings.host_workers or -(-settings.workers // 2)
        slots = self._slots + Counter(operation.at_host for operation in beside)
        return [host_id for host_id, taken in slots.most_common() if taken >= most and host_id is not None]

    def _write(self) -> AbstractAsyncContextManager[Ctx]:
        return self._runtime.write(together=len(self._tasks) > 1)

    async def _work_logged(self, operation: Operation, since: float) -> None:
        try:
            await self.work(operation, since)
        except DatabaseUnavailable as error:
            log.debug("operation %s: its lease runs out and it is taken up again: %s", operation.id, error.reason)
        except Exception:
            log.exception("operation %s: its lease runs out and it is taken up again", operation.id)

    async def work(self, operation: Operation, since: float) -> None:
        """Carry a leased operation to its end, to its next try, or to the command that takes over.

        `since`: when the lease was asked for, by the monotonic clock.
        """
        async with self._runtime.read() as ctx:
            server = await servers.row(ctx, operation.server_id)
            host = None if server.host_id is None else await hosts.row(ctx, server.host_id)
            successor = await operations.waiting(ctx, operation.id)
        try:
            at_host = None if host is None else self._runtime.at(host)
        except Misconfigured as error:  # until the operator has given the host another address
            await self._put_back(operation, str(error), "its host, which cannot be used now")
            return
        if host is None or at_host is None:
            await self._put_back(operation, waiting.NO_HOST, "room on a host")
            return
        job = Job(at_host, host, operation, server, LeaseClock(self._monotonic, since))
        job.together = len(self._tasks) > 1
        job.superseded = successor is not None
        attempt = asyncio.create_task(self._attempt(job))
        heartbeat = asyncio.create_task(self._keep_lease(job))
        try:
            while not (attempt.done() or heartbeat.done()) and (left := job.lease_clock.seconds_left()) > 0:
                await asyncio.wait({attempt, heartbeat}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if attempt.done():
                attempt.result()
            else:
                log.warning("operation %s: its lease is over; what is under way is left off", operation.id)
        except TakenOver:
            log.warning("operation %s: another worker has taken it over", operation.id)
        finally:
            await _end({attempt, heartbeat})

    async def _put_back(self, operation: Operation, why: str, waits_for: str) -> None:
        run_at_ms = self._runtime.clock.now_ms() + _pause_seconds(operation, _LONGEST_PAUSE_SECONDS) * 1000
        async with self._write() as ctx:
            await waiting.put_back(ctx, operation, run_at_ms, why, waits_for)

    async def _attempt(self, job: Job) -> None:
        try:
            if job.operation.step == CLEAN_UP_STEP and not job.superseded:
                raise _reason(job.operation)
            await self._run_steps(job)
            await self._end(job, None)
        except Superseded:
            await self._give_way(job)
        except LostLease:
            raise
        except Unusable as error:
            await self._fail(job, Failure.of(error))
        except (DatabaseUnavailable, TakenOver) as error:  # the guest has another's mark, and the lease is still ours
            await self._try_again(job, Failure.of(error))
        except Unavailable as error:
            await self._try_again(job, Failure.of(error), error.waits_for)
        except Exception as error:
            log.exception("operation %s: %s met an error of vpsd's own", job.operation.id, job.operation.command)
            await self._try_again(job, Failure.of(error))

    async def _run_steps(self, job: Job) -> None:
        operation = job.operation
        looks_itself = Command(operation.command) in LOOK_THEMSELVES
        if job.host.health == HostHealth.UNREACHABLE and not looks_itself:  # its keeper says when it is back
            raise Unavailable(f"host {job.host.name} does not answer: {job.host.error}")
        await _take(job)
        if job.ends_at is not None and (
            self._runtime.clock.monotonic() > job.ends_at or operation.attempts > operations.MAX_ATTEMPTS
        ):
            last = Failure(
                operation.error or "the worker died", operation.cause or operation.error or "the worker died"
            )
            given_up = last.after(f"Given up after {operation.attempts - 1} attempts: ")
            raise Unusable(given_up.cause, given_up.error)
        flow, first = steps_of(job)
        job.steps, job.step = flow, (first, len(flow))
        job.end = partial(close, job=job, failure=None)
        for index in range(first, len(flow)):
            if job.superseded:
                raise Superseded
            if is_ending():
                raise asyncio.CancelledError
            if not job.is_next_saved:  # else the transaction that ended the last step has looked at the row
                async with self._write() as ctx:
                    await job.save_step(ctx, index)
                    job.server = await servers.row(ctx, job.server.id)
            job.step, job.is_next_saved = (index, len(flow)), False
            log.debug(
                "operation %s: %s of server %s, %s", operation.id, operation.command, job.server.id, job.step_name
            )
            await flow[index](job)
            if not job.has_ended:
                await waiting.end(job)

    async def _keep_lease(self, job: Job) -> None:
        while not is_ending():
            left = job.lease_clock.seconds_left()  # the database may have been slow
            await self._tick(max(_LEAST_BEAT_SECONDS, min(operations.LEASE_SECONDS / 5, left / 3)))
            since = self._monotonic()
            try:
                async with self._write() as ctx:
                    job.superseded |= await operations.renew(ctx, job.lease) is not None
                job.lease_clock.renewed(since)
            except LostLease:
                return
            except DatabaseUnavailable as error:
                log.debug("operation %s: the lease could not be renewed yet: %s", job.operation.id, error.reason)
            except Exception:
                log.exception("operation %s: the lease could not be renewed; the next try comes soon", job.operation.id)
                if job.lease_clock.seconds_left() <= 0:
                    return

    async def _clean_up(self, job: Job, failure: Failure | None) -> str | None:
        """Clean up behind what failed, or gives way (None); what there is to say of it, or None: that comes later."""
        operation = job.operation
        clean_up, first = CLEAN_UP.get(Command(operation.command)), LEAVES_NOTHING.get(Command(operation.command))
        if clean_up is None or (first is not None and job.step_name in (None, first.__name__)):
            return ""
        was_begun = operation.step == CLEAN_UP_STEP
        if not was_begun:
            async with self._write() as ctx:  # first: who takes over must not make what is deleted here
                await operations.begin_clean_up(ctx, job.lease, failure)
            job.ends_at = self._runtime.clock.monotonic() + operations.CLEAN_UP_SECONDS
        try:
            if was_begun:
                await _take(job)
            await job.refresh()
            return await clean_up(job) or ""
        except (DatabaseUnavailable, TakenOver):
            raise  # it is taken up again when the lease has run out
        except Exception as error:  # what is left is found by `vpsd check`
            comes_first = Command(operation.command) in CLEANS_UP_FIRST
            goes_first = job.superseded and not comes_first  # who takes over
            if isinstance(error, Unavailable) and not goes_first and await self._put_off(job, failure, error):
                return None
            log.warning("operation %s: could not clean up behind it: %s", operation.id, error)
        return ""

    async def _put_off(self, job: Job, failure: Failure | None, error: Exception) -> bool:
        """Have the cleaning up tried again, as long as there is time for it."""
        pause_seconds = _pause_seconds(job.operation, _LONGEST_PAUSE_SECONDS)
        assert job.ends_at is not None
        is_late = self._runtime.clock.monotonic() + pause_seconds > job.ends_at
        if is_late and Command(job.operation.command) not in CLEANS_UP_FIRST:
            return False
        log.warning("operation %s: cleaned up behind it in %s s: %s", job.operation.id, pause_seconds, error)
        async with self._write() as ctx:
            run_at_ms = self._runtime.clock.now_ms() + pause_seconds * 1000
            await operations.reschedule(ctx, job.lease, failure or Failure.of(error), run_at_ms)
        return True

    async def _fail(self, job: Job, failure: Failure) -> None:
        operation = job.operation
        if RULES[Command(operation.command)].minutes is None:  # tried until it is done
            await self._try_again(job, failure)
            return
        said = await self._clean_up(job, failure)
        if said is None:
            return
        failure = failure.then(said) if said else failure
        log.warning(
            "operation %s: %s of server %s failed: %s", operation.id, operation.command, job.server.id, failure.cause
        )
        await self._end(job, failure)

    async def _end(self, job: Job, failure: Failure | None) -> None:
        """Close the operation, unless its last step did, and bring the server to rest; who waits for it goes first."""
        if job.has_ended:
            return
        async with self._write() as ctx:
            has_ended = await close(ctx, job, failure)
        if not has_ended:
            await self._hand_over(job)

    async def _give_way(self, job: Job) -> None:
        job.superseded = True
        if await self._clean_up(job, None) is not None:
            await self._hand_over(job)

    async def _hand_over(self, job: Job) -> None:
        async with self._write() as ctx:
            await servers.lock(ctx, job.server.id)
            successor = await operations.renew(ctx, job.lease)
            assert successor is not None
            await operations.hand_over(ctx, job.lease, successor)
            await record_end(ctx, job, f"It gave way to the server's {successor.command}.")

    async def _try_again(self, job: Job, failure: Failure, waits_for: str | None = None) -> None:
        operation = job.operation
        endless = RULES[Command(operation.command)].minutes is None
        longest = operations.LONGEST_PAUSE_SECONDS if endless else _LONGEST_PAUSE_SECONDS
        pause_seconds = _pause_seconds(operation, longest)
        run_at_ms = self._runtime.clock.now_ms() + pause_seconds * 1000
        late = job.ends_at is not None and self._runtime.clock.monotonic() + pause_seconds > job.ends_at
        if not endless and (late or operation.attempts >= operations.MAX_ATTEMPTS):
            await self._fail(job, failure.after(f"Given up after {operation.attempts} attempts: "))
            return
        log.warning("operation %s: tried again in %s s: %s", operation.id, pause_seconds, failure.cause)
        async with self._write() as ctx:
            if waits_for is not None:
                index, steps = job.step
                await waiting.tell(ctx, operation, index / steps, waits_for)
            successor = await operations.waiting(ctx, operation.id)
            if successor is None:
                await operations.reschedule(ctx, job.lease, failure, run_at_ms)
        if successor is not None:  # it goes first
            await self._give_way(job)


def _moves_disks(operation: Operation) -> bool:
    return RULES[Command(operation.command)].moves_disks


async def _take(job: Job) -> None:
    """Mark the guest; one that hangs cannot be marked, and is ended all the same.

    It has an earlier mark then, and whatever starts it again marks it first.
    """
    if Command(job.operation.command) in LOOK_THEMSELVES:
        return
    try:
        await job.runtime.hypervisor.take(job.name)
    except Unavailable as error:
        if job.operation.command not in ENDS_GUEST:
            raise
        log.warning(
            "operation %s: %s of server %s goes on with a guest that is not marked as its own: %s",
            *(job.operation.id, job.operation.command, job.server.id, error),
        )


def _reason(operation: Operation) -> Unusable:
    """Why an operation failed behind which only the cleaning up is left."""
    error = operation.error or "The worker died while it cleaned up."
    return Unusable(operation.cause or error, error)


def _pause_seconds(operation: Operation, longest: int) -> int:
    return min(longest, 1 << min(operation.attempts - 1, 16))


async def _end(tasks: set[asyncio.Task[None]]) -> None:
    """Have tasks end; what they raise is nobody's concern any more."""
    await end_all(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()
