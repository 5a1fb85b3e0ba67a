"""Sees to backups by the clock: begins the daily ones, lets go of those whose time is over, sweeps up what is left."""

import asyncio
import logging

from vpsd.backups import rows as backups
from vpsd.backups import schedule
from vpsd.backups.models import Backup, Kind
from vpsd.backups.repository import BackupRef
from vpsd.core.db import Tx
from vpsd.core.ids import Ids
from vpsd.errors import Busy, Unavailable, Unusable, VpsdError
from vpsd.servers import rows, service
from vpsd.servers.jobs import World
from vpsd.servers.lifecycle import RULES, Command

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 5.0
_AGAIN_MS = 5 * 60 * 1000  # after a target that did not answer
DESCRIPTION = "Automatic daily backup"


class Keeper:
    """Looks at the clock now and then. Any number of them may do so at once: each thing is done under its lock."""

    def __init__(self, world: World, ids: Ids) -> None:
        self._world = world
        self._ids = ids
        self._sweep_at_ms: dict[int, int] = {}  # by backup: not before, after a try that failed

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                await self.keep()
            except Exception:
                log.exception("the keeper of backups met an error; it goes on")
            await asyncio.sleep(_PERIOD_SECONDS)

    async def keep(self) -> None:
        """Do what is due."""
        now = self._world.clock.now_ms()
        async with self._world.database.read() as tx:
            due = await rows.backup_due(tx, now)
            expired = await backups.expired(tx, now)
        for server_id in due:
            try:
                async with self._world.database.write() as tx:
                    await self._back_up(tx, server_id)
            except Busy:
                log.debug("server %s is busy; its backup waits", server_id)
        for backup in expired:
            async with self._world.database.write() as tx:
                await backups.lock(tx, backup.id)  # a restore that begins now waits, and finds it gone
                if await backups.user_of(tx, backup.id) is None:
                    await backups.delete(tx, backup.id, now)
        async with self._world.database.read() as tx:
            left = await backups.to_sweep(tx)
        for backup in left:
            if self._sweep_at_ms.get(backup.id, now) > now:
                continue
            try:
                await self._sweep(backup)
                self._sweep_at_ms.pop(backup.id, None)
            except VpsdError as error:
                log.warning("backup %s cannot be taken off its target; tried again later: %s", backup.id, error)
                self._sweep_at_ms[backup.id] = now + _AGAIN_MS
                if isinstance(error, Unavailable):
                    return  # neither can the others

    async def _back_up(self, tx: Tx, server_id: int) -> None:
        """Begin a server's daily backup; of several that were missed, one."""
        now = self._world.clock.now_ms()
        server = await rows.lock(tx, server_id)
        if server.next_backup_at_ms is None or server.next_backup_at_ms > now or server.deleted_at_ms is not None:
            return
        if server.provisioned_at_ms is None or server.status not in RULES[Command.BACKUP_DAILY].begins_from:
            return  # it stays due, and is made up for as soon as it can be
        await backups.delete_failed(tx, server_id, Kind.AUTOMATIC, now)
        backup = await backups.add(tx, self._ids.uuid(), server, Kind.AUTOMATIC, None, DESCRIPTION, now)
        await service.begin(tx, self._ids, self._world.clock, server_id, Command.BACKUP_DAILY, backup.id)
        await rows.set_next_backup(tx, server_id, schedule.next_slot_ms(self._world.settings, server.uuid, now))

    async def _sweep(self, backup: Backup) -> None:
        """Take what is left of a backup off its target."""
        world = self._world
        async with world.database.read() as tx:
            server = await rows.get(tx, backup.server_id)
            others = await backups.others(tx, backup)
        if backup.target is not None:  # else nothing of it was ever sent
            if backup.target != world.repository.target_name:
                raise Unusable(f"it lies in {backup.target}, and vpsd is set to {world.repository.target_name}")
            here = [BackupRef(server.uuid, one.uuid) for one in others if one.target == backup.target]
            await world.repository.discard(BackupRef(server.uuid, backup.uuid), here)
        async with world.database.write() as tx:
            await backups.set_gone(tx, backup.id, world.clock.now_ms())
