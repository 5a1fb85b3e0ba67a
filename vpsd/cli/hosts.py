"""Hosts: what runs servers."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from vpsd import main
from vpsd.accounts import service as accounts
from vpsd.backups import evacuation
from vpsd.catalog import service as catalog
from vpsd.cli.host_checks import (
    CannotBeUsed,
    check_alone,
    check_host,
    check_shared,
    require_another_machine,
    require_unused,
)
from vpsd.cli.output import console, print_json, print_list, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, transactions
from vpsd.core.clock import iso_utc_or_none
from vpsd.core.context import OPERATOR, Ctx, Transactions
from vpsd.errors import NotFound
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, Host, HostHealth, HostState, driver_of
from vpsd.operations.moves import open_moves
from vpsd.servers import queries as servers

app = typer.Typer(no_args_is_help=True, help="Hosts: the machines that run servers.")

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEMES = ("qemu", "qemu+unix", "qemu+ssh", "qemu+libssh", "qemu+libssh2", "qemu+tls", "simulator")

Name = Annotated[str, typer.Argument(help="The host's name, from `vpsd host list`.")]
Uri = Annotated[str | None, typer.Option(help="How libvirt there is reached, like qemu+ssh://root@node2/system.")]
Pool = Annotated[str | None, typer.Option(help="Folder on the host for servers' disks; by default, libvirt's own.")]
Shared = Annotated[
    str | None, typer.Option(metavar="POOL", help="A name for --pool, which other hosts see as well: a shared folder.")
]
Location = Annotated[str | None, typer.Option(help="Code of the location that it serves; `any`: all of them.")]
CpuRatio = Annotated[float | None, typer.Option(min=0.01, max=1000, help="vCPUs to hand out per CPU.")]
MemoryRatio = Annotated[float | None, typer.Option(min=0.01, max=1000, help="Memory to hand out, as a multiple.")]
StorageRatio = Annotated[float | None, typer.Option(min=0.01, max=1000, help="Disk space to hand out, as a multiple.")]


@app.command()
@run_async
async def add(
    name: Annotated[str, typer.Argument(help="What it is called here.")],
    uri: Annotated[str, typer.Option(help="How libvirt there is reached, like qemu+ssh://root@node2/system.")],
    location: Location = None,
    pool: Pool = None,
    shared: Shared = None,
    cpu_ratio: CpuRatio = None,
    memory_ratio: MemoryRatio = None,
    storage_ratio: StorageRatio = None,
    force: Annotated[bool, typer.Option("--force", help="Add it although a check has failed.")] = False,
    json: Json = False,
) -> None:
    """Add a host, once it was seen to be usable: connection, versions, KVM, pool, clock, name.

    Any worker that runs takes it up by itself. Example: `vpsd host add node2 --uri qemu+ssh://root@node2/system
    --location us-west`.
    """
    _require_name(name)
    _require_uri(uri)
    _require_folder(pool, shared)
    async with transactions() as opened:
        async with opened.read(OPERATOR) as ctx:
            code = await _location(ctx, location)
            if await hosts.find_by_name(ctx, name) is not None:
                raise CannotBeUsed(f"There is a host {name!r} already; choose another name.")
            await require_unused(ctx, uri)
        async with opened.write() as ctx:
            instance = await accounts.instance(ctx)
        address = Address(uri, pool, shared)
        hypervisor = main.make_hypervisor(opened.settings, instance, opened.clock, address)
        try:
            seen = await check_host(opened.settings, opened.clock, hypervisor)
            checks, facts = seen.checks, seen.facts
            async with opened.read(OPERATOR) as ctx:
                await require_another_machine(ctx, name, seen.guests)
                if seen.volumes.disks:
                    checks += await check_alone(ctx, seen.volumes.disks, shared and f"pool:{shared}")
            if shared is not None and facts is not None:
                checks.append(await check_shared(opened, hypervisor, name, shared))
        finally:
            await hypervisor.close()
        failed = [check for check in checks if not check.ok]
        if failed and not force:
            told = "; ".join(f"{check.what}: {check.text}" for check in failed)
            raise CannotBeUsed(f"{name} was not added: {told}. Mend that, or add it with --force.")
        async with opened.write(OPERATOR) as ctx:
            host = await hosts.add_host(
                ctx, name, driver_of(uri), uri=uri, pool=pool, shared_pool=shared, location=code
            )
            ratios = {"cpu_ratio": cpu_ratio, "memory_ratio": memory_ratio, "storage_ratio": storage_ratio}
            await hosts.change_host(ctx, host.id, **{key: value for key, value in ratios.items() if value is not None})
            if facts is not None:
                await hosts.record_facts(ctx, host.id, facts, "ok")
            host = await hosts.row(ctx, host.id)
    if json:
        print_json({**_shown(host), "checks": checks})
        return
    for check in checks:
        console.print(f"{check.verdict:7} {check.what}: {check.text}", markup=False)
    console.print(f"{name} was added, and gets servers from now on.", markup=False)


@app.command("list")
@run_async
async def list_hosts(json: Json = False) -> None:
    """List the hosts: where they are, whether they answer, and what of them is handed out.

    `vpsd host show NAME` shows one in full.
    """
    async with reading() as ctx:
        found = [_shown(host) for host in await hosts.list_hosts(ctx)]
    columns = ("name", "location", "state", "health", "servers", "vcpus", "memory_mb", "storage_gb", "error")
    print_list(json, found, columns, "There are no hosts yet: `vpsd up` adds this machine, `vpsd host add` others.")


@app.command()
@run_async
async def show(name: Name, json: Json = False) -> None:
    """Show a host in full, with the servers on it.

    `vpsd host set NAME` changes it.
    """
    async with reading() as ctx:
        host = await hosts.find_host_named(ctx, name)
        on_it = [
            {"id": server.id, "name": server.name, "status": server.status}
            for server in await servers.present(ctx, host.id)
        ]
    shown = {**_shown(host), "on_it": on_it}
    if json:
        print_json(shown)
        return
    for key, value in shown.items():
        if key != "on_it":
            console.print(f"{key:14} {'-' if value is None else value}", markup=False)
    print_list(False, on_it, ("id", "name", "status"), "No servers are on it.")


@app.command("set")
@run_async
async def set_host(
    name: Name,
    uri: Uri = None,
    location: Location = None,
    pool: Pool = None,
    shared: Shared = None,
    cpu_ratio: CpuRatio = None,
    memory_ratio: MemoryRatio = None,
    storage_ratio: StorageRatio = None,
    json: Json = False,
) -> None:
    """Change how a host is reached, where it is, or how much of it is handed out; what is not given stays.

    Servers that are on it stay where they are. Example: `vpsd host set node2 --cpu-ratio 4`.
    """
    if uri is not None:
        _require_uri(uri)
    changes: dict[str, Any] = {
        "uri": uri,
        "pool": pool,
        "shared_pool": shared,
        "cpu_ratio": cpu_ratio,
        "memory_ratio": memory_ratio,
        "storage_ratio": storage_ratio,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    async with transactions() as opened:
        async with opened.read(OPERATOR) as ctx:
            host, instance = await hosts.find_host_named(ctx, name), await accounts.instance(ctx)
        host = msgspec.structs.replace(host, **changes)
        if host.shared_pool is not None and {"pool", "shared_pool"} & changes.keys():
            _require_folder(host.pool, host.shared_pool)
            hypervisor = main.make_hypervisor(opened.settings, instance, opened.clock, host.address)
            check = await check_shared(opened, hypervisor, name, host.shared_pool)
            await hypervisor.close()
            if not check.ok:
                raise CannotBeUsed(f"{name} was not changed: {check.text}.")
        await _set(opened, name, location, changes, json)


async def _set(opened: Transactions, name: str, location: str | None, changes: dict[str, Any], json: bool) -> None:
    async with opened.write(OPERATOR) as ctx:
        host = await hosts.find_host_named(ctx, name)
        if location is not None:
            changes["location"] = await _location(ctx, location)
        if (uri := changes.get("uri")) is not None:
            await require_unused(ctx, uri, by_others_than=host.id)
            changes["driver"] = driver_of(uri)
        if host.shared_pool is not None and changes.get("shared_pool", host.shared_pool) != host.shared_pool:
            raise CannotBeUsed(
                f"{name} is in the pool {host.shared_pool}: to leave it, remove the host and add it anew."
            )
        await hosts.change_host(ctx, host.id, **changes)
        host = await hosts.row(ctx, host.id)
        # Raises, and nothing is changed, where no driver can work with that address.
        main.make_hypervisor(opened.settings, await accounts.instance(ctx), opened.clock, host.address)
    print_result(json, _shown(host), f"{name} was changed." if changes else f"Nothing was given to change of {name}.")


@app.command()
@run_async
async def disable(name: Name, json: Json = False) -> None:
    """Give a host no new servers; those that it has stay, and everything can be done with them.

    `vpsd host enable NAME` takes it back.
    """
    await _set_state(name, HostState.DISABLED, f"{name} gets no new servers.", json)


@app.command()
@run_async
async def enable(name: Name, json: Json = False) -> None:
    """Give a host new servers again.

    `vpsd host disable NAME` ends that.
    """
    await _set_state(name, HostState.ENABLED, f"{name} gets new servers.", json)


@app.command()
@run_async
async def evacuate(
    name: Name,
    fenced: Annotated[
        bool, typer.Option("--fenced", help="You have seen that the host is off, and stays off until all is done.")
    ] = False,
    json: Json = False,
) -> None:
    """Bring the servers of a host that is off up elsewhere: on their disks in a shared pool, else from their backups.

    A host that is only out of reach may still run its servers: make sure that it is off, and cannot come back by itself
    (pull its plug). Where a host that is alive shares its pool, nothing is lost. Otherwise what was written since the
    latest backup is, and a server without one stays. When the host is back, what it still runs of them is powered off;
    `vpsd check --fix` removes it, and `vpsd host enable NAME` uses the host again.
    """
    async with transactions() as opened:
        async with opened.write(OPERATOR) as ctx:
            host = await hosts.find_host_named(ctx, name)
            if host.health != HostHealth.UNREACHABLE:
                raise CannotBeUsed(f"{name} answers (health: {host.health}): its servers are left where they are.")
            if not fenced:
                raise CannotBeUsed(
                    f"{name} does not answer, which does not mean that its servers are off. Switch it off, then give "
                    "--fenced."
                )
            await hosts.change_host(ctx, host.id, state=HostState.FENCED, draining_since_ms=None)
            on_it = [server.id for server in await servers.present(ctx, host.id)]
        done = []
        for server_id in on_it:
            async with opened.write(OPERATOR) as ctx:
                done.append(await evacuation.evacuate(ctx, server_id, host))
    if json:
        print_json(done)
        return
    rows = [(one.server_id, one.name, one.to, _started_from(one), one.why) for one in done]
    print_rows(("server", "name", "now on", "from", "stays because"), rows, f"{name} has no servers.")


@app.command()
@run_async
async def remove(name: Name, json: Json = False) -> None:
    """Forget a host that has no servers any more. Nothing on it is touched.

    `vpsd host add NAME` brings it back.
    """
    async with transactions() as opened, opened.write(OPERATOR) as ctx:
        host = await hosts.find_host_named(ctx, name)
        await hosts.change_host(ctx, host.id, removed_at_ms=ctx.now_ms)  # first: from now on nobody places one there
        left = await servers.present(ctx, host.id)
        if left:
            raise CannotBeUsed(
                f"{name} still has servers ({len(left)}, like {left[0].id}): first move them (vpsd host drain {name}), "
                "or delete them."
            )
        if any(host.id in (move.argument, move.host_id) for move in await open_moves(ctx)):
            raise CannotBeUsed(f"A server is being moved to {name}, or from it: wait until that is over.")
    print_result(json, _shown(host), f"{name} was removed.")


def _started_from(one: evacuation.Evacuated) -> str | None:
    """What a server that was brought up elsewhere is made from, in words."""
    if one.shared_pool is not None:
        return f"its disk in the pool {one.shared_pool}: nothing is lost"
    if one.backup_id is not None:
        return f"backup {one.backup_id} of {iso_utc_or_none(one.backup_made_at_ms)}: what came since is lost"
    return None if one.to is None else "its image: it had no disk yet"


async def _set_state(name: str, state: HostState, sentence: str, json: bool) -> None:
    async with transactions() as opened, opened.write(OPERATOR) as ctx:
        host = await hosts.find_host_named(ctx, name)
        await hosts.change_host(ctx, host.id, state=state, draining_since_ms=None)
        host = await hosts.row(ctx, host.id)
    print_result(json, _shown(host), sentence)


async def _location(ctx: Ctx, code: str | None) -> str | None:
    """The code of a location that exists; None for all of them. Raises `NotFound`."""
    if code is None or code == "any":
        return None
    if await catalog.find_location(ctx, code) is None:
        raise NotFound("location", code)
    return code


def _require_folder(pool: str | None, shared: str | None) -> None:
    if shared is not None:
        _require_name(shared)
        if pool is None:
            raise CannotBeUsed(f"Say with --pool which folder the pool {shared} is on this host.")


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CannotBeUsed(f"{name!r} is no name for a host: use up to 63 letters, digits, dots, hyphens, underscores.")


def _require_uri(uri: str) -> None:
    place = urlsplit(uri)
    if place.scheme not in _SCHEMES:
        raise CannotBeUsed(f"{uri!r} cannot be used: give an address like qemu+ssh://root@node2/system.")
    if place.password is not None:
        raise CannotBeUsed("An address of a host carries no password: use a key.")


def _shown(host: Host) -> dict[str, Any]:
    def of(used: int, has: int | None, ratio: float | None) -> str:
        return f"{used} of {'?' if has is None else has}{'' if ratio is None else f' x {ratio:g}'}"

    return {
        "id": host.id,
        "name": host.name,
        "driver": host.driver,
        "uri": host.uri,
        "pool": host.pool,
        "shared_pool": host.shared_pool,
        "location": host.location or "any",
        "state": host.state if host.draining_since_ms is None else "draining",
        "health": host.health,
        "servers": host.used_servers,
        "vcpus": of(host.used_vcpus, host.cpus, host.cpu_ratio),
        "memory_mb": of(host.used_memory_mb, host.memory_mb, host.memory_ratio),
        "storage_gb": of(host.used_storage_gb, host.storage_gb, host.storage_ratio),
        "storage": host.storage,
        "version": host.version,
        "virt_type": host.virt_type,
        "seen_at": iso_utc_or_none(host.seen_at_ms),
        "looked_after_by": host.lease_owner,
        "error": host.error,
    }
