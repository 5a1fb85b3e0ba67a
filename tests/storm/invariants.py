"""What has to hold, whatever happened."""

from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select

from tests.storm.hosts import MEMORY_MB
from vpsd.audit import Audit
from vpsd.backups import queries as backups
from vpsd.backups.models import BackupStatus
from vpsd.billing.verify import verify
from vpsd.core.db import Statement
from vpsd.events.models import events
from vpsd.hypervisor.names import guest_of
from vpsd.hypervisor.protocol import PowerState, guest_name
from vpsd.lifecycle import AT_REST, Status
from vpsd.operations import service as operations
from vpsd.operations.models import Operation, OperationStatus
from vpsd.operations.models import operations as operations_table
from vpsd.operations.service import LEASE_SECONDS
from vpsd.runtime import Runtime
from vpsd.servers import queries as servers
from vpsd.servers.models import Server
from vpsd.worker.biller import Biller

if TYPE_CHECKING:
    from tests.storm.customers import Customer, Wish
    from tests.storm.world import World

_EVENTS = Statement(
    select(events.c.action).where(events.c.target == bindparam("kind"), events.c.target_id == bindparam("id")), into=str
)
_FAILED = Statement(select(operations_table).where(operations_table.c.status == OperationStatus.FAILED), into=Operation)
_ENDS = (BackupStatus.COMPLETED, BackupStatus.FAILED)
_LIVE = (PowerState.RUNNING, PowerState.PAUSED)


class Findings:
    """What does not hold."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.texts: list[str] = []
        self._meddled: dict[str, float] = {}  # guests to which something happened by itself, and when last

    def add(self, text: str) -> None:
        """Something does not hold."""
        if text not in self.texts:
            self.texts.append(text)
            self._world.tell("FINDING", text)

    def meddled(self, guest: str) -> None:
        """Something happened to a guest that nobody had asked for."""
        self._meddled[guest] = self._world.loop.time()

    def watch(self) -> None:
        """Look at each change on a host: no server ever runs twice."""
        for host in self._world.hosts.values():
            host.watch(self._look_at_guest)

    def _look_at_guest(self, name: str) -> None:
        on = []
        for host_name, host in self._world.hosts.items():
            guest = host._store.current().guests.get(name)
            departure = host.departures.get(name)
            if departure is not None and not departure.is_over:
                return  # a move hands it over at this moment, or has yet to
            if guest is not None and guest.power in _LIVE and not guest.moving:
                on.append(host_name)
        if len(on) > 1:
            self.add(f"{name} runs on {' and '.join(on)}")

    def look_at_lease(self, term: str, call: str) -> None:
        """Look at each call that a job sends: nobody has taken its operation over by then.

        A worker that starts after the clock was set forward takes over leases that have not run out: the mark on the
        guest keeps off what the others still send.
        """
        if self._world.loop.time() - self._world.clock_set_at < LEASE_SECONDS:
            return
        operation_id, fence = map(int, term.split("."))
        held = self._world.read("SELECT fence FROM operations WHERE id = ?", operation_id)
        if held > fence:
            self.add(f"{call} is sent for operation {operation_id} with lease {fence}, and another has lease {held}")

    async def look(self) -> None:
        """Look at everything, after the storm."""
        from tests.storm.machine import Machine

        runtime = Machine(self._world, "observer").runtime
        self._world.cut.clear()
        await Biller(runtime).bill()
        was_left = any("could not clean up behind it" in line for line in self._world.story)  # of a host that was away
        for found in await Audit(runtime).run():
            if found.kind == "copy" and was_left:
                continue  # the log tells of it, and `vpsd check --fix` removes it
            self.add(f"vpsd check: {found.kind} {found.name}: {found.text}")
        async with runtime.read() as ctx:
            for book in await verify(ctx, servers.lives):
                if book.difference_micros or book.problems:
                    self.add(f"ledger of {book.account}: {book.difference_micros} {book.problems}")
            present = {row.id: row for row in await servers.present(ctx)}
            busy = await operations.busy_servers(ctx)
        for row in present.values():
            if row.status not in AT_REST or row.id in busy:
                self.add(f"server {row.id} is {row.status}{', and busy' if row.id in busy else ''}")
        await self._look_at_failures(runtime)
        self._look_at_addresses(list(present.values()))
        self._look_at_guests(present)
        for customer in self._world.customers:
            rows = [row for row in present.values() if row.account_id == customer.account_id]
            self._look_for_servers(customer, rows)
            await self._look_for_snapshots(runtime, customer)
            for server_id, wish in customer.wishes.items():
                async with runtime.read() as ctx:
                    row_ever = await servers.find_row(ctx, server_id)
                    failed = [one for one in await ctx.tx.all(_FAILED) if one.server_id == server_id]
                    has_failed = any(one.id >= wish.since_operation for one in failed)
                    recorded = Counter(await ctx.tx.all(_EVENTS, kind="server", id=server_id))
                for action, accepted in wish.events.items():
                    if recorded[action] < accepted:
                        text = f"{action} was accepted {accepted} times for server {server_id}"
                        self.add(f"{text}, and its history has it {recorded[action]} times")
                if row_ever is None:
                    self.add(f"server {server_id} of {customer.name} was accepted, and there is no row")
                else:
                    self._look_at_wish(customer, row_ever, wish, has_failed=has_failed)

    async def _look_for_snapshots(self, runtime: Runtime, customer: "Customer") -> None:
        for snapshot_id, server_id in customer.snapshots:
            async with runtime.read() as ctx:
                row = await backups.find(ctx, snapshot_id)
                recorded = await ctx.tx.all(_EVENTS, kind="snapshot", id=snapshot_id)
            if row is None or row.status not in _ENDS or "snapshot.create" not in recorded:
                what = "no row" if row is None else row.status
                self.add(f"snapshot {snapshot_id} of server {server_id}: {what}, and its history is {recorded}")

    async def _look_at_failures(self, runtime: Runtime) -> None:
        """Nothing is given up before its time, and a storm is shorter than any."""
        async with runtime.read() as ctx:
            failed = await ctx.tx.all(_FAILED)
        for operation in failed:
            if (operation.error or "").startswith("Given up") and operation.attempts < operations.MAX_ATTEMPTS:
                text = f"operation {operation.id} ({operation.command} of server {operation.server_id})"
                self.add(f"{text} was given up early, after {operation.attempts} attempts: {operation.cause}")

    def _look_at_addresses(self, rows: list[Server]) -> None:
        held = [row.ip_address for row in rows if row.ip_address is not None]
        for address in sorted({one for one in held if held.count(one) > 1}):
            self.add(f"several servers have {address}")

    def _look_at_guests(self, present: dict[int, Server]) -> None:
        """One guest and one disk for each server that there is, and none for others, on its host."""
        used = dict.fromkeys(self._world.hosts, 0)
        for host_name, host in self._world.hosts.items():
            state = host._store.current()
            rows = {guest_name(self._world.instance, row.id): row for row in present.values()}
            for name, guest in state.guests.items():
                row = rows.get(name)
                if row is None:
                    self.add(f"{host_name} has a guest {name}, and there is no such server")
                elif row.status == Status.ACTIVE and guest.power is not PowerState.RUNNING:
                    self.add(f"server {row.id} is active, and its guest is {guest.power}")
                elif row.status in (Status.STOPPED, Status.DELETED) and guest.power in _LIVE:
                    self.add(f"server {row.id} is {row.status}, and its guest is {guest.power}")
                used[host_name] += 0 if row is None else row.memory_mb
            for disk in state.disks:
                if guest_of(disk) not in rows:
                    self.add(f"{host_name} has a disk {disk}, and there is no such server")
            if used[host_name] > MEMORY_MB * self._world.settings.memory_overcommit:
                self.add(f"{host_name} has handed out {used[host_name]} MB of {MEMORY_MB}")

    def _look_for_servers(self, customer: "Customer", rows: list[Server]) -> None:
        names = [row.name for row in rows]
        for name in sorted(set(names)):
            if names.count(name) > 1:
                self.add(f"{name} was made {names.count(name)} times")
            if name not in customer.made | customer.perhaps:
                self.add(f"{name} is there, and was not accepted")

    def _look_at_wish(self, customer: "Customer", row: Server, wish: "Wish", *, has_failed: bool) -> None:
        who = f"server {row.id} of {customer.name}"
        is_there = row.deleted_at_ms is None and row.purge_due_at_ms is None
        if is_there not in wish.is_there:
            self.add(f"{who} shall be {'there' if True in wish.is_there else 'gone'}, and is {row.status}")
        if row.plan_id not in wish.plan:
            self.add(f"{who} shall have plan {wish.plan}, and has {row.plan_id}")
        if row.hostname not in wish.hostname and None not in wish.hostname:
            self.add(f"{who} shall be called {wish.hostname}, and is {row.hostname}")
        if not is_there or row.status == Status.ERROR:
            if row.status == Status.ERROR and not row.error:
                self.add(f"{who} is in error, and nobody says why")
            return
        power = "on" if row.status == Status.ACTIVE else "off"
        went_by_itself = self._meddled.get(guest_name(self._world.instance, row.id), 0.0) >= wish.power_asked_at
        if power not in wish.power and not has_failed and not went_by_itself:
            self.add(f"{who} shall be {wish.power}, and is {row.status}; nothing explains it")
