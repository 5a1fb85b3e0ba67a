"""Hosts: what runs servers."""

import re
from collections.abc import Collection
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from vpsd import main
from vpsd.accounts import service as accounts
from vpsd.backups import evacuation
from vpsd.catalog import service as catalog
from vpsd.cli import host_checks
from vpsd.cli.output import console, print_json, print_list, print_result, print_rows
from vpsd.cli.run import Json, reading, run_async, transactions
from vpsd.core.clock import iso_utc_or_none
from vpsd.core.context import OPERATOR, Ctx
from vpsd.errors import Misconfigured, NotFound
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, Host, HostHealth, HostState, driver_of
from vpsd.hypervisor.names import server_id_of
from vpsd.servers import queries as servers

app = typer.Typer(no_args_is_help=True, help="Hosts: the machines that run servers.")

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SCHEMES = ("qemu", "qemu+unix", "qemu+ssh", "qemu+libssh", "qemu+libssh2", "qemu+tls", "simulator")

Name = Annotated[str, typer.Argument(help="The host's name, from `vpsd host list`.")]
Uri = Annotated[str | None, typer.Option(help="How libvirt there is reached, like qemu+ssh://root@node2/system.")]
Pool = Annotated[str | None, typer.Option(help="Folder on the host for servers' disks; by default, libvirt's own.")]
Location = Annotated[str | None, typer.Option(help="Code of the location that it serves; `any`: all of them.")]
CpuRatio = Annotated[float | None, typer.Option(min=0.01, max=1000, help="vCPUs to hand out per CPU.")]
MemoryRatio = Annotated[float | None, typer.Option(min=0.01, max=1000, help="Memory to hand out, as a multiple.")]
StorageRatio = Annotated[float | None, typer.Option(min=0.01, max=1000, help="Disk space to hand out, as a multiple.")]


class CannotBeUsed(Misconfigured):
    """A host is not as it has to be."""


@app.command()
@run_async
async def add(
    name: Annotated[str, typer.Argument(help="What it is called here.")],
    uri: Annotated[str, typer.Option(help="How libvirt there is reached, like qemu+ssh://root@node2/system.")],
    location: Location = None,
    pool: Pool = None,
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
    async with transactions() as opened:
        async with opened.read(OPERATOR) as ctx:
            code = await _location(ctx, location)
            if await hosts.find_by_name(ctx, name) is not None:
                raise CannotBeUsed(f"There is a host {name!r} already; choose another name.")
            await _require_unused(ctx, uri)
        async with opened.write() as ctx:
            instance = await accounts.instance(ctx)
        hypervisor = main.make_hypervisor(opened.settings, instance, opened.clock, Address(uri, pool))
        checks, facts, guests = await host_checks.check(opened.settings, opened.clock, hypervisor)
        async with opened.read(OPERATOR) as ctx:
            await _require_another_machine(ctx, name, guests)
        failed = [check for check in checks if not check.ok]
        if failed and not force:
            told = "; ".join(f"{check.what}: {check.text}" for check in failed)
            raise CannotBeUsed(f"{name} was not added: {told}. Mend that, or add it with --force.")
        async with opened.write(OPERATOR) as ctx:
            host = await hosts.add_host(ctx, name, driver_of(uri), uri=uri, pool=pool, location=code)
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
        "cpu_ratio": cpu_ratio,
        "memory_ratio": memory_ratio,
        "storage_ratio": storage_ratio,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    async with transactions() as opened, opened.write(OPERATOR) as ctx:
        host = await hosts.find_host_named(ctx, name)
        if location is not None:
            changes["location"] = await _location(ctx, location)
        if uri is not None:
            await _require_unused(ctx, uri, by_others_than=host.id)
            changes["driver"] = driver_of(uri)
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
    """Bring the servers of a host that is off up elsewhere, from their latest backups.

    A host that is only out of reach may still run its servers: make sure that it is off, and cannot come back by itself
    (pull its plug). What was written since a backup is lost; a server without one stays. When the host is back, what it
    still runs of them is powered off; `vpsd check --fix` removes it, and `vpsd host enable NAME` uses the host again.
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
            await hosts.change_host(ctx, host.id, state=HostState.FENCED)
            on_it = [server.id for server in await servers.present(ctx, host.id)]
        done = []
        for server_id in on_it:
            async with opened.write(OPERATOR) as ctx:
                done.append(await evacuation.evacuate(ctx, server_id, host))
    if json:
        print_json(done)
        return
    rows = [
        (one.server_id, one.name, one.to, one.backup_id, iso_utc_or_none(one.backup_made_at_ms), one.why)
        for one in done
    ]
    print_rows(("server", "name", "now on", "from backup", "made at", "stays because"), rows, f"{name} has no servers.")


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
                f"{name} still has servers ({len(left)}, like {left[0].id}): first move them, or delete them."
            )
    print_result(json, _shown(host), f"{name} was removed.")


async def _set_state(name: str, state: HostState, sentence: str, json: bool) -> None:
    async with transactions() as opened, opened.write(OPERATOR) as ctx:
        host = await hosts.find_host_named(ctx, name)
        await hosts.change_host(ctx, host.id, state=state)
        host = await hosts.row(ctx, host.id)
    print_result(json, _shown(host), sentence)


async def _location(ctx: Ctx, code: str | None) -> str | None:
    """The code of a location that exists; None for all of them. Raises `NotFound`."""
    if code is None or code == "any":
        return None
    if await catalog.find_location(ctx, code) is None:
        raise NotFound("location", code)
    return code


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise CannotBeUsed(f"{name!r} is no name for a host: use up to 63 letters, digits, dots, hyphens, underscores.")


def _require_uri(uri: str) -> None:
    place = urlsplit(uri)
    if place.scheme not in _SCHEMES:
        raise CannotBeUsed(f"{uri!r} cannot be used: give an address like qemu+ssh://root@node2/system.")
    if place.password is not None:
        raise CannotBeUsed("An address of a host carries no password: use a key.")


async def _require_unused(ctx: Ctx, uri: str, by_others_than: int | None = None) -> None:
    """One machine is one host: as two, what is the one's would be taken for left behind at the other, and powered off.

    Raises `CannotBeUsed`.
    """
    found = (host.name for host in await hosts.list_hosts(ctx) if host.uri == uri and host.id != by_others_than)
    same = next(found, None)
    if same is not None:
        raise CannotBeUsed(f"The host {same!r} has the address {uri} already.")


async def _require_another_machine(ctx: Ctx, name: str, guests: Collection[str]) -> None:
    """Raise `CannotBeUsed` where guests of this cloud run there: the machine is a host already, by another address."""
    for guest in guests:
        server = await servers.find_row(ctx, server_id_of(guest))
        if server is not None and server.purged_at_ms is None and server.host_id is not None:
            there = (await hosts.row(ctx, server.host_id)).name
            raise CannotBeUsed(f"{name} runs server {server.id}, which is on {there}: they are the same machine.")


def _shown(host: Host) -> dict[str, Any]:
    def of(used: int, has: int | None, ratio: float | None) -> str:
        return f"{used} of {'?' if has is None else has}{'' if ratio is None else f' x {ratio:g}'}"

    return {
        "id": host.id,
        "name": host.name,
        "driver": host.driver,
        "uri": host.uri,
        "pool": host.pool,
        "location": host.location or "any",
        "state": host.state,
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
