"""Reads what running guests say of their first boot, through their agent: nobody waits for it.

A server's user data is judged once. Its SSH host keys are read after every change of the server, as a boot is one.
"""

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from vpsd.core.units import HOUR_MS, SECOND_MS
from vpsd.errors import DatabaseUnavailable, Unavailable, Unusable
from vpsd.hypervisor.protocol import guest_name
from vpsd.lifecycle import Status
from vpsd.runtime import HostRuntime
from vpsd.servers import guest_report, updates
from vpsd.servers import queries as servers
from vpsd.servers.guest_report import Report
from vpsd.servers.models import Server
from vpsd.servers.seen import SeenServer
from vpsd.servers.user_data import UserDataStatus
from vpsd.worker.followers import Looker

log = logging.getLogger(__name__)

_LONGEST_PAUSE_SECONDS = 60.0
_AT_ONCE = 2  # a guest that does not answer occupies a connection to the host meanwhile
_GIVE_UP_MS = HOUR_MS  # after the last change of the server: by then user data has ended, or never says so


class _Asked(msgspec.Struct):
    """When a guest is asked next, since its server last changed, and until when; by what passes steadily."""

    updated_at_ms: int
    next_at: float
    until: float
    pause_seconds: float = 2.0
    has_answered: bool = False


class GuestReader(Looker):
    """Asks every running guest until it has said what there is to know, less and less often."""

    period_seconds = 2.0

    def __init__(self, runtime: HostRuntime) -> None:
        super().__init__(runtime)
        self._asked: dict[int, _Asked] = {}

    def notice(self, seen: Sequence[SeenServer], *, everything: bool) -> None:
        for server in seen:
            asked = self._asked.get(server.id)
            if asked is not None and asked.updated_at_ms != server.updated_at_ms:  # asked anew, and at once
                del self._asked[server.id]
                self._noticed.discard(server.id)
        super().notice(seen, everything=everything)
        if everything:
            old_ms = self._runtime.clock.now_ms() - _GIVE_UP_MS
            self._asked = {  # of what is older nobody asks again
                server_id: asked
                for server_id, asked in self._asked.items()
                if server_id in self._noticed or asked.updated_at_ms > old_ms
            }

    def _concerns(self, server: SeenServer) -> bool:
        if server.deleted_at_ms is not None or server.status not in (Status.ACTIVE, Status.STOPPED):
            return False
        if server.user_data_status == UserDataStatus.RUNNING:
            return True
        asked = self._asked.get(server.id)
        has_answered = asked is not None and asked.has_answered and asked.updated_at_ms == server.updated_at_ms
        is_new = server.updated_at_ms > self._runtime.clock.now_ms() - _GIVE_UP_MS
        return server.status == Status.ACTIVE and is_new and not has_answered

    def _pause_seconds(self) -> float:
        now, longest = self._runtime.clock.monotonic(), super()._pause_seconds()
        if not self._noticed:
            return longest
        next_at = min((self._asked[one].next_at if one in self._asked else now) for one in self._noticed)
        return max(self.period_seconds, min(next_at - now, _LONGEST_PAUSE_SECONDS))

    async def look(self) -> None:
        """Ask every guest that is due."""
        slots = asyncio.Semaphore(_AT_ONCE)

        async def look(server_id: int) -> None:
            async with slots:
                await self._look(server_id)

        now = self._runtime.clock.monotonic()
        due = [one for one in sorted(self._noticed) if one not in self._asked or self._asked[one].next_at <= now]
        await asyncio.gather(*map(look, due))

    async def _look(self, server_id: int) -> None:
        try:
            async with self._runtime.read() as ctx:
                server = await self._row(ctx, server_id)
            if server is None:
                return
            waits = server.user_data_status == UserDataStatus.RUNNING
            if server.status == Status.ACTIVE:
                await self._ask(server)
            elif server.status == Status.STOPPED and waits:
                await self._save(server, Report([], UserDataStatus.UNKNOWN, "The guest went off before it said how."))
                waits = False
            asked = self._asked.get(server_id)
            has_answered = asked is None or asked.has_answered or server.status != Status.ACTIVE
            if has_answered and not waits:
                self._noticed.discard(server_id)
        except (Unavailable, Unusable) as error:
            log.debug("server %s could not be asked: %s", server_id, error)
        except DatabaseUnavailable:
            raise
        except Exception:
            log.exception("server %s could not be asked; the others are", server_id)

    async def _ask(self, server: Server) -> None:
        now = self._runtime.clock.monotonic()
        asked = self._asked.get(server.id)
        if asked is None or asked.updated_at_ms != server.updated_at_ms:
            left_ms = server.updated_at_ms + _GIVE_UP_MS - self._runtime.clock.now_ms()
            # Of a row that a clock which was ahead has changed, no more than the whole time.
            asked = _Asked(server.updated_at_ms, now, now + min(left_ms, _GIVE_UP_MS) / SECOND_MS)
            self._asked[server.id] = asked
        waits = server.user_data_status == UserDataStatus.RUNNING
        if now < asked.next_at or (asked.has_answered and not waits):
            return
        if now > asked.until:
            asked.has_answered = True
            if waits:
                await self._save(
                    server, Report([], UserDataStatus.UNKNOWN, "The guest did not say how within an hour.")
                )
            return
        asked.next_at = now + asked.pause_seconds
        asked.pause_seconds = min(2 * asked.pause_seconds, _LONGEST_PAUSE_SECONDS)
        done = await self._runtime.hypervisor.run_in_guest(
            guest_name(self._runtime.instance, server.id),
            guest_report.COMMAND,
            timeout_seconds=guest_report.COMMAND_SECONDS,
        )
        if done is not None:
            report = guest_report.read_report(done.stdout)
            asked.has_answered = bool(report.host_keys)
            await self._save(server, report)

    async def _save(self, server: Server, report: Report) -> None:
        async with self._runtime.write() as ctx:
            now = await servers.lock(ctx, server.id)
            if now.deleted_at_ms is not None or now.provisioned_at_ms != server.provisioned_at_ms:
                return  # what was asked is another guest by now
            await updates.set_report(ctx, now, report)
