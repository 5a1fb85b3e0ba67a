"""What has to be right of a host before it is added, as far as it can be seen from here."""

import contextlib
import secrets
import socket
from collections.abc import Collection

import msgspec

from vpsd import main
from vpsd.accounts import service as accounts
from vpsd.core.clock import Clock
from vpsd.core.context import Ctx, Transactions
from vpsd.errors import Misconfigured, VpsdError
from vpsd.hosts import service as hosts
from vpsd.hypervisor.clock import difference
from vpsd.hypervisor.names import disk_name, guest_of, server_id_of
from vpsd.hypervisor.protocol import HostFacts, Hypervisor, Volumes
from vpsd.servers import queries as servers
from vpsd.settings import Settings

_LOOKS, _LOOK_SECONDS = 4, 0.5


class CannotBeUsed(Misconfigured):
    """A host is not as it has to be."""


class Check(msgspec.Struct, frozen=True):
    """What was found out of a host before it was added."""

    what: str
    ok: bool
    text: str
    warning: bool = False  # it may be added as it is, and should be mended

    @property
    def verdict(self) -> str:
        """In a word, for people."""
        return "FAILED" if not self.ok else "WARNING" if self.warning else "ok"


class Seen(msgspec.Struct, frozen=True):
    """What was seen of a host."""

    checks: list[Check]
    facts: HostFacts | None
    guests: frozenset[str]
    volumes: Volumes


async def require_another_machine(ctx: Ctx, name: str, guests: Collection[str]) -> None:
    """Raise `CannotBeUsed` where guests of this cloud run there: the machine is a host already, by another address."""
    for guest in guests:
        server = await servers.find_row(ctx, server_id_of(guest))
        if server is not None and server.purged_at_ms is None and server.host_id is not None:
            there = (await hosts.row(ctx, server.host_id)).name
            raise CannotBeUsed(f"{name} runs server {server.id}, which is on {there}: they are the same machine.")


async def require_unused(ctx: Ctx, uri: str, by_others_than: int | None = None) -> None:
    """One machine is one host: as two, what is the one's would be taken for left behind at the other, and powered off.

    Raises `CannotBeUsed`.
    """
    found = (host.name for host in await hosts.list_hosts(ctx) if host.uri == uri and host.id != by_others_than)
    same = next(found, None)
    if same is not None:
        raise CannotBeUsed(f"The host {same!r} has the address {uri} already.")


async def check_host(settings: Settings, clock: Clock, hypervisor: Hypervisor) -> Seen:
    """Look at a host as far as can be looked at from here."""
    checks: list[Check] = []
    volumes = Volumes(frozenset(), frozenset(), frozenset())
    try:
        facts = await hypervisor.facts()
    except VpsdError as error:
        return Seen([Check("connection", False, str(error))], None, frozenset(), volumes)
    checks.append(Check("connection", True, f"{facts.driver} {facts.version} at {facts.uri}"))
    emulates = facts.virt_type != "kvm" and facts.driver != "simulator" and settings.virt_type != "qemu"
    checks.append(Check("guests", not emulates, f"{facts.virt_type} ({facts.virt_reason})"))
    try:
        volumes = await hypervisor.volumes()
        checks.append(Check("pool", True, f"{facts.storage_gb or '?'} GB"))
        checks.append(await _check_clock(hypervisor, clock))
    except VpsdError as error:
        checks.append(Check("pool", False, str(error)))
    if facts.driver != "simulator":
        checks.append(_check_name(facts.name))
    return Seen(checks, facts, frozenset(await hypervisor.guests()), volumes)


async def _check_clock(hypervisor: Hypervisor, clock: Clock) -> Check:
    """A host's clock is seen by the time that a new file in its pool has."""
    found = await difference(hypervisor, clock)
    if found is None:
        return Check("clock", True, "it cannot be seen from here")
    how_far = f"{abs(found.seconds):.1f} s {'ahead of' if found.seconds > 0 else 'behind'} this machine's"
    text = f"{how_far}, give or take {found.give_or_take_seconds:.1f} s"
    return Check("clock", True, f"{text}; set it right, by NTP" if found.is_far else text, warning=found.is_far)


def _check_name(name: str) -> Check:
    """A host's own name has to resolve: libvirt asks for it at every start, and waits for seconds where it does not."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return Check("name", False, f"{name} does not resolve here ({error}); let it resolve here and on every host")
    return Check("name", True, f"{name} resolves here; it has to on every host")


async def check_alone(ctx: Ctx, disks: Collection[str], place: str | None) -> list[Check]:
    """A pool in which the disks of another host's servers lie is that host's as well: `vpsd check` has to know it.

    `place`: what the pool is called if it is said to be shared.
    """
    for disk in sorted(disks):
        server = await servers.find_row(ctx, server_id_of(disk))
        if server is None or server.purged_at_ms is not None or server.host_id is None:
            continue
        there = await hosts.row(ctx, server.host_id)
        if there.place != place and disk == disk_name(guest_of(disk), server.disk):
            text = f"the disk of server {server.id} is in it, which is on {there.name}: mark both with --shared POOL"
            return [Check("pool", False, text)]
    return []


async def check_shared(opened: Transactions, hypervisor: Hypervisor, name: str, shared_pool: str) -> Check:
    """A pool that hosts share is the same folder for all: a file that the one writes is seen by another."""
    async with opened.read() as ctx:
        others = [host for host in await hosts.list_hosts(ctx) if host.shared_pool == shared_pool and host.name != name]
        instance = await accounts.instance(ctx)
    if not others:
        return Check("shared", True, f"it is the first host of the pool {shared_pool}")
    mark, silent = secrets.token_hex(4), []
    try:
        await hypervisor.put_mark(mark)
        for host in others:
            other = main.make_hypervisor(opened.settings, instance, opened.clock, host.address)
            try:
                if await _sees(opened, other, mark):
                    return Check("shared", True, f"{host.name} sees what is written to the pool {shared_pool} here")
                text = f"{host.name} does not see a file that was written here: it is not the folder of {shared_pool}"
                return Check("shared", False, text)
            except VpsdError:
                silent.append(host.name)
            finally:
                await other.close()
        return Check("shared", False, f"no other host of the pool {shared_pool} answers ({', '.join(silent)})")
    except VpsdError as error:
        return Check("shared", False, str(error))
    finally:
        with contextlib.suppress(VpsdError):
            await hypervisor.put_mark(mark, present=False)


async def _sees(opened: Transactions, host: Hypervisor, mark: str) -> bool:
    """Whether a mark is seen; a network file system may take a moment."""
    for _ in range(_LOOKS):
        if mark in (await host.volumes()).marks:
            return True
        await opened.clock.sleep(_LOOK_SECONDS)
    return False
