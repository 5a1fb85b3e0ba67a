"""Sees to backups by the clock: begins the daily ones, deletes those whose time is over, collects the garbage."""

import logging

from vpsd.backups import commands, marks, queries
from vpsd.backups.models import Backup, BackupStatus
from vpsd.backups.repository import BackupRef
from vpsd.backups.targets import TargetNotThere
from vpsd.core.clock import every
from vpsd.errors import Busy, DatabaseUnavailable, Unavailable, Unusable, VpsdError
from vpsd.runtime import Runtime
from vpsd.servers import queries as servers
from vpsd.worker import clock_jumps

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 5.0
_LOOK_SECONDS = 15  # between two looks at the target
_AGAIN_SECONDS = 300  # after a target that did not answer


class BackupScheduler:
    """Looks at the clock now and then. Any number of them may do so at once: each thing is done under its lock."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._collect_at: dict[int, float] = {}  # by backup: not before, after a try that failed
        self._look_at = 0.0
        self._said: str | None = None  # in the log, of a target that was not there at the last look

    async def run(self) -> None:
        """Work until cancelled."""
        await every(self._runtime.clock, _PERIOD_SECONDS, self.schedule)

    async def schedule(self) -> None:
        """Do what is due."""
        await clock_jumps.look(self._runtime)
        await self._look()
        if not self._runtime.jumps.unsettled:
            await self._keep_times()
        await self.collect_garbage()

    async def _keep_times(self) -> None:
        """Begin what is due, and delete what has had its time."""
        async with self._runtime.read() as ctx:
            due = await servers.backup_due(ctx)
            expired = await queries.expired(ctx)
        for server_id in due:
            try:
                async with self._runtime.write() as ctx:
                    await commands.create_daily(ctx, server_id)
            except Busy:
                log.debug("server %s is busy; its backup waits", server_id)
        for backup in expired:
            if backup.status != BackupStatus.FAILED and self._said is not None:
                continue  # while no new ones can be made, the old ones are all there is
            async with self._runtime.write() as ctx:
                await commands.expire(ctx, backup)

    async def _look(self) -> None:
        """Look for the target, for /health and for what is done to it; why it is not there is logged."""
        now = self._runtime.clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        repository = self._runtime.repository
        try:
            await marks.identify(self._runtime, repository)
        except DatabaseUnavailable:  # says nothing of the target
            raise
        except VpsdError as error:
            if self._said != str(error):
                log.error("backups cannot be made: %s", error)
            self._said = str(error)
            return
        if self._said is not None:
            log.warning("%s is there again: backups can be made", repository.location)
        self._said = None

    async def collect_garbage(self) -> None:
        """Take off the target what is left of backups that nobody needs."""
        now = self._runtime.clock.monotonic()
        async with self._runtime.read() as ctx:
            garbage = await queries.garbage(ctx)
        for backup in garbage:
            if self._collect_at.get(backup.id, now) > now:
                continue
            try:
                await self._collect(backup)
                self._collect_at.pop(backup.id, None)
            except DatabaseUnavailable:
                raise
            except VpsdError as error:
                log.warning("backup %s cannot be taken off its target; tried again later: %s", backup.id, error)
                self._collect_at[backup.id] = now + _AGAIN_SECONDS
                if isinstance(error, Unavailable | TargetNotThere):
                    return  # neither can the others

    async def _collect(self, backup: Backup) -> None:
        repository = self._runtime.repository
        async with self._runtime.read() as ctx:
            server = await servers.row(ctx, backup.server_id)
            others = await queries.others(ctx, backup)
        if backup.target is not None:  # else nothing of it was ever sent
            if await marks.identify(self._runtime, repository) != backup.target:
                raise Unusable("it is on another target")
            kept = [BackupRef(server.uuid, one.uuid) for one in others if one.target == backup.target]
            await repository.discard(BackupRef(server.uuid, backup.uuid), kept)
            await repository.check_mark(backup.target)  # else it may still lie there, where this was not mounted
        async with self._runtime.write() as ctx:
            await commands.set_purged(ctx, backup.id)
