"""Real guests: the driver of `vpsd.hypervisor.protocol` for QEMU under libvirt."""

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

import libvirt
import msgspec

from vpsd.hypervisor.libvirt import agent, connect, domains, exports, stats, transfer
from vpsd.hypervisor.libvirt.calls import QUICK_SECONDS
from vpsd.hypervisor.libvirt.console import Console, open_console
from vpsd.hypervisor.libvirt.domain_xml import build
from vpsd.hypervisor.libvirt.host import versions
from vpsd.hypervisor.libvirt.migrating import Migrating
from vpsd.hypervisor.libvirt.transfer import transfer_seconds
from vpsd.hypervisor.libvirt.volumes import clock_ms
from vpsd.hypervisor.protocol import (
    BlockMap,
    BootSigns,
    DiskExport,
    Guest,
    GuestRun,
    GuestSpec,
    GuestStats,
    HostFacts,
    Image,
    Progress,
    Volumes,
)

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class LibvirtHypervisor(Migrating):
    """The host of one vpsd. Connects on the first call."""

    async def take(self, name: str) -> None:
        """Put the owner's mark on the guest."""
        await self._change(name, lambda host: domains.take(host, name, self._owner), f"take the guest {name}")

    async def facts(self) -> HostFacts:
        """Describe the host. Connects if needed."""

        def ask(host: libvirt.virConnect) -> HostFacts:
            virt_type, reason = self._virtualization.find(host, local=self._is_local)
            memory = host.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)  # getInfo misses hotplugged memory
            return HostFacts(
                driver="libvirt",
                uri=self._choice.uri,
                virt_type=virt_type,
                virt_reason=reason,
                version=versions(host),
                name=host.getHostname(),
                cpus=host.getInfo()[2],
                memory_mb=memory["total"] // 1024,
                storage_gb=self._pool.capacity_gb(host),
                low_ports=connect.may_open_low_ports(self._choice),
                storage_free_mb=self._pool.free_mb(host, local=self._is_local),
            )

        return await self._host.call(ask, "describe itself", QUICK_SECONDS)

    async def clock_ms(self) -> int | None:
        """What the host's clock says: the time of a file that is made in the pool for this, and deleted."""
        return await self._host.call(
            lambda host: clock_ms(self._pool.open(host)), "tell what the time is", QUICK_SECONDS
        )

    async def guests(self) -> Mapping[str, Guest]:
        """All guests of this vpsd by name, in one round trip."""

        def ask(host: libvirt.virConnect) -> dict[str, Guest]:
            found = {}
            for domain, values in host.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
                if self._own.fullmatch(domain.name()):
                    guest = self._networks.guest(domain, values["state.state"], values["state.reason"])
                    if guest is not None:
                        found[guest.name] = guest
            return found

        return await self._host.call(ask, "list its guests", QUICK_SECONDS)

    async def guest(self, name: str) -> Guest | None:
        """One guest, or None if the host does not know it."""

        def ask(host: libvirt.virConnect) -> Guest | None:
            domain = domains.find(host, name)
            if domain is None or self._owner.is_other(domain.UUIDString()):
                return None
            return self._networks.guest(domain, *domain.state())

        return await self._host.call(ask, f"look up the guest {name}", QUICK_SECONDS)

    async def volumes(self) -> Volumes:
        """The contents of the storage pool of this vpsd."""

        def ask(host: libvirt.virConnect) -> Volumes:
            return msgspec.structs.replace(self._pool.list(host), logs=self._logs.names(host))

        return await self._host.call(ask, "list its volumes", QUICK_SECONDS)

    async def put_mark(self, mark: str, *, present: bool = True) -> None:
        """Have an empty volume in the pool, or not."""
        action = "mark its pool"
        await self._host.call(lambda host: self._pool.put_mark(host, mark, present=present), action, QUICK_SECONDS)

    async def has_base(self, key: str) -> bool:
        """Whether a base volume is complete."""
        action = f"look for the image {key}"
        return await self._host.call(lambda host: self._pool.has_base(host, key), action, QUICK_SECONDS)

    async def ensure_base(self, image: Image, progress: Progress) -> None:
        """Upload the image's files unless they are complete on the host; only one upload of an image runs at a time."""
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def report(fraction: float, text: str) -> None:
            loop.call_soon_threadsafe(progress, fraction, text)

        files = [file for file in (image.disk, image.kernel, image.initrd) if file is not None]
        size = sum(file.stat().st_size for file in files)
        async with self._uploads.setdefault(image.key, asyncio.Lock()):
            try:
                await self._host.call(
                    lambda host: self._pool.upload_base(host, image, report, stop, self._owner),
                    f"store the image {image.key}",
                    transfer_seconds(size),
                )
            finally:
                stop.set()
        progress(1.0, "the image is on the host")

    async def delete_base(self, key: str) -> None:
        """Delete a base volume or a partial upload of it; raises `Unusable` while a disk uses it."""
        action = f"delete the image {key}"
        await self._host.call(lambda host: self._pool.delete_base(host, key, self._owner), action, QUICK_SECONDS)

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        """Create a disk of that size on top of the base volume, unless there is a complete one."""
        action = f"create the disk {disk}"
        await self._change(disk, lambda host: self._pool.make_disk(host, disk, base, size_bytes, self._owner), action)

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        """Create a disk without a base, with that content."""
        self._require_own(disk)
        await transfer.write_disk(self._host, self._pool, disk, size_bytes, chunk_bytes, chunks, content, self._owner)

    async def delete_disk(self, disk: str) -> None:
        """Delete a disk."""
        action = f"delete the disk {disk}"
        await self._change(disk, lambda host: self._pool.delete_disk(host, disk, self._owner), action)

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        """Grow the disk to at least that size: through QEMU while the guest runs, otherwise through the pool."""

        def ask(host: libvirt.virConnect) -> None:
            if self._pool.disk_bytes(host, disk) >= size_bytes:
                return
            exports.delete_checkpoints(host, name, None, self._owner)  # their bitmaps have the length of the old disk
            if domains.grow_disk(host, name, size_bytes, self._owner):
                return
            try:
                self._pool.grow_disk(host, disk, size_bytes, self._owner)
            except libvirt.libvirtError:  # a QEMU that died left bitmaps in the disk: only a QEMU can remove them
                if not exports.remove_bitmaps(host, name, self._pool.disk_path(host, disk), self._owner):
                    raise
                self._pool.grow_disk(host, disk, size_bytes, self._owner)

        await self._change(name, ask, f"grow the disk of {name}")

    async def export_disk(self, name: str, checkpoint: str, since: str | None, *, freeze: bool = True) -> DiskExport:
        """Start exporting the guest's disk to a file next to it."""

        def ask(host: libvirt.virConnect) -> DiskExport:
            domains.require_name(host, name, self._owner)
            self._drop_export(host, name)
            self._pool.require_space(host, 0 if since else self._pool.max_export_bytes(host, name))
            path = self._pool.export_path(host, name)
            return exports.begin(host, name, path, checkpoint, since, self._owner, freeze=freeze)

        return await self._change(name, ask, f"export the disk of {name}", _START_SECONDS)

    async def export_progress(self, name: str) -> float:
        """Progress from 0 to 1.0 (complete)."""
        action = f"report the progress of the export of {name}"
        return await self._host.call(lambda host: exports.progress(host, name), action, QUICK_SECONDS)

    async def block_map(self, name: str) -> BlockMap:
        """What the complete export holds."""
        return await self._exports.block_map(name)

    async def read_export(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of the disk from the complete export."""
        return await self._exports.read(name, offset, length)

    async def drop_export(self, name: str) -> None:
        """Abort and delete the export of the guest's disk, if any."""
        action = f"drop the export of {name}"
        await self._change(name, lambda host: self._drop_export(host, name), action, _START_SECONDS)

    async def keep_checkpoint(self, name: str, checkpoint: str | None) -> None:
        """Delete all checkpoints of the guest's disk but that one."""
        action = f"delete checkpoints of {name}"
        await self._change(
            name, lambda host: exports.delete_checkpoints(host, name, checkpoint, self._owner), action, _START_SECONDS
        )

    async def ensure_thawed(self, name: str) -> bool | None:
        """Have the guest's file systems thawed, and see whether it writes."""
        return await self._change(
            name, lambda host: exports.ensure_thawed(host, name, self._owner), f"thaw {name}", _START_SECONDS
        )

    async def write_seed(self, name: str, content: bytes) -> None:
        """Write or replace the guest's seed."""

        def ask(host: libvirt.virConnect) -> None:
            domains.require_name(host, name, self._owner)
            self._pool.write_seed(host, name, content, self._owner)

        await self._change(name, ask, f"write the seed of {name}")

    async def define(self, spec: GuestSpec) -> None:
        """Define or redefine the guest."""

        def ask(host: libvirt.virConnect) -> None:
            virt_type, _ = self._virtualization.find(host, local=self._is_local)
            domains.require_name(host, spec.name, self._owner)  # before it has a log
            domains.define(host, spec, build(spec, self._files(host, spec), virt_type), self._owner)
            self._pool.make_portable(host, spec.name, spec.disk, self._owner)
            self._networks.forget(spec.name)

        await self._change(spec.name, ask, f"define the guest {spec.name}")

    async def power_on(self, name: str) -> None:
        """Start or resume the guest."""

        def ask(host: libvirt.virConnect) -> None:
            connect.make_ready(self._choice, self._data)  # its log daemon, too: libvirt starts no guest without one
            domains.power_on(host, name, self._owner)

        await self._change(name, ask, f"start the guest {name}", _START_SECONDS)

    async def resume(self, name: str) -> None:
        """Let a guest go on that the host has paused."""
        await self._change(name, lambda host: domains.resume(host, name, self._owner), f"resume the guest {name}")

    async def request_shutdown(self, name: str) -> None:
        """Press the ACPI power button."""
        action = f"press the power button of {name}"
        await self._change(name, lambda host: domains.request_shutdown(host, name, self._owner), action)

    async def power_off(self, name: str) -> None:
        """Power off at once."""
        action = f"power off the guest {name}"
        await self._change(name, lambda host: domains.power_off(host, name, self._owner), action, _STOP_SECONDS)

    async def is_up(self, name: str) -> bool:
        """Whether a forwarded port of the guest sends anything, or on a remote host its agent answers."""
        action = f"look whether {name} is up"
        network = await self._host.call(lambda host: self._networks.running(host, name), action, QUICK_SECONDS)
        if network is None:
            await self._port_probes.stop(name)
            return False
        if not network.forwards or not self._is_local:
            return await self._host.call(lambda host: domains.pings(host, name), action, QUICK_SECONDS)
        return await self._port_probes.responds(name, network.address, [one.host_port for one in network.forwards])

    async def end_probe(self, name: str) -> None:
        """Close the connections that `is_up` keeps to a silent guest."""
        await self._port_probes.stop(name)

    async def boot_signs(self, name: str) -> BootSigns:
        """How far the guest's boot is, by its agent, its serial console and its disk."""

        def ask(host: libvirt.virConnect) -> BootSigns:
            domain = domains.find(host, name)
            if domain is None or self._networks.running(host, name) is None:
                return BootSigns()
            return domains.boot_signs(host, domain, self._logs.tail(host, name))

        return await self._host.call(ask, f"look at the boot of {name}", QUICK_SECONDS)

    async def remove(self, name: str, disks: Collection[str] | None = None) -> None:
        """Power off and undefine the guest, and delete what it has, and these disks."""

        def ask(host: libvirt.virConnect) -> None:
            if domains.may_change(host, name, self._owner):
                domains.power_off(host, name, self._owner)
                domains.undefine(host, name, self._owner)
                self._logs.delete(host, name, self._owner)
                self._pool.delete_guest(host, name, self._owner)
            self._pool.delete_disks(host, name, disks, self._owner)

        await self._change(name, ask, f"remove the guest {name}", _STOP_SECONDS)
        self._networks.forget(name)
        self._exports.forget(name)
        await self._port_probes.stop(name)

    async def undefine(self, name: str) -> None:
        """Power off and undefine the guest, and delete no file."""

        def ask(host: libvirt.virConnect) -> None:
            domains.power_off(host, name, self._owner)
            domains.undefine(host, name, self._owner, keeps_files=True)

        await self._change(name, ask, f"undefine the guest {name}", _STOP_SECONDS)
        self._networks.forget(name)
        self._exports.forget(name)
        await self._port_probes.stop(name)

    async def stats(self, name: str) -> GuestStats:
        """Statistics of a guest; all None if it is not running."""

        def ask(host: libvirt.virConnect) -> GuestStats:
            domain = domains.find(host, name)
            network = None if domain is None else self._networks.running(host, name)
            return GuestStats() if domain is None or network is None else stats.measure(host, domain, network.mac)

        return await self._host.call(ask, f"measure the guest {name}", QUICK_SECONDS)

    async def run_in_guest(
        self, name: str, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 10
    ) -> GuestRun | None:
        """Run a program through the guest's agent."""

        def ask(host: libvirt.virConnect) -> GuestRun | None:
            domain = domains.find_own(host, name, self._owner)
            if domain is None or self._networks.running(host, name) is None:
                return None
            return agent.run(domain, argv, stdin, timeout_seconds)

        return await self._change(name, ask, f"run a program in the guest {name}", QUICK_SECONDS + timeout_seconds)

    async def console(self, name: str) -> Console:
        """Open the guest's serial console; raises `Unusable` if the guest is not running."""
        action = f"open the console of {name}"
        stream = await self._host.call(lambda host: open_console(host, name), action, QUICK_SECONDS)
        return Console(stream, asyncio.get_running_loop())
