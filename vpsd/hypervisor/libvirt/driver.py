"""Real guests: the driver of `vpsd.hypervisor.protocol` for QEMU under libvirt."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import libvirt
import msgspec

from vpsd.errors import Unusable
from vpsd.hypervisor.libvirt import agent, connect, domains, exports, stats, transfer
from vpsd.hypervisor.libvirt.connection import Connection
from vpsd.hypervisor.libvirt.console import Console, open_console
from vpsd.hypervisor.libvirt.domain_xml import Files, build
from vpsd.hypervisor.libvirt.host import LibvirtHost, versions
from vpsd.hypervisor.libvirt.networks import Networks
from vpsd.hypervisor.libvirt.port_probe import PortProbes
from vpsd.hypervisor.libvirt.serial_logs import SerialLogs
from vpsd.hypervisor.libvirt.storage import Pool
from vpsd.hypervisor.libvirt.transfer import transfer_seconds
from vpsd.hypervisor.probe import probe_kvm
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

_QUICK_SECONDS = 20.0
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class LibvirtHypervisor:
    """The host of one vpsd. Connects on the first call."""

    def __init__(
        self,
        instance: str,
        data: Path,
        uri: str | None = None,
        pool_path: Path | None = None,
        virt_type: str | None = None,
        machine: connect.Machine | None = None,
        storage_reserve_mb: int | None = None,
    ) -> None:
        """`uri`, `pool_path`, `virt_type` and `storage_reserve_mb` override what is detected.

        Raises `Misconfigured` if there is no usable libvirt.
        """
        connect.require_python_binding()
        self._prefix = f"vpsd-{instance}-"
        self._data = data
        self._choice = connect.choose(uri, data, machine or connect.LocalMachine())
        path = connect.choose_pool_path(self._choice, instance, data, pool_path)
        self._pool = Pool(instance, path, path_is_explicit=pool_path is not None, reserve_mb=storage_reserve_mb)
        self._virt = None if virt_type is None else (virt_type, "set by VPSD_VIRT_TYPE")
        self._virt_lock = threading.Lock()
        self._host = LibvirtHost(Connection(self._find_uri, self._on_connect, self._on_change, self._on_reboot))
        self._networks = Networks()
        self._watchers: list[Callable[[str], None]] = []
        self._reboot_watchers: list[Callable[[str], None]] = []
        self._uploads: dict[str, asyncio.Lock] = {}
        self._logs = SerialLogs(instance, self._pool)
        self._port_probes = PortProbes()
        self._exports = transfer.ExportReader(self._host, self._pool)

    async def facts(self) -> HostFacts:
        """Describe the host. Connects if needed."""

        def ask(host: libvirt.virConnect) -> HostFacts:
            virt_type, reason = self._virtualization(host)
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
                storage_free_mb=self._pool.free_mb(host, local=connect.is_local(self._choice.uri)),
            )

        return await self._host.call(ask, "describe itself", _QUICK_SECONDS)

    async def guests(self) -> Mapping[str, Guest]:
        """All guests of this vpsd by name, in one round trip."""

        def ask(host: libvirt.virConnect) -> dict[str, Guest]:
            found = {}
            for domain, values in host.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
                if domain.name().startswith(self._prefix):
                    guest = self._networks.guest(domain, values["state.state"], values["state.reason"])
                    if guest is not None:
                        found[guest.name] = guest
            return found

        return await self._host.call(ask, "list its guests", _QUICK_SECONDS)

    async def guest(self, name: str) -> Guest | None:
        """One guest, or None if the host does not know it."""

        def ask(host: libvirt.virConnect) -> Guest | None:
            domain = domains.find(host, name)
            return None if domain is None else self._networks.guest(domain, *domain.state())

        return await self._host.call(ask, f"look up the guest {name}", _QUICK_SECONDS)

    async def volumes(self) -> Volumes:
        """The contents of the storage pool of this vpsd."""

        def ask(host: libvirt.virConnect) -> Volumes:
            return msgspec.structs.replace(self._pool.list(host), logs=self._logs.names(host))

        return await self._host.call(ask, "list its volumes", _QUICK_SECONDS)

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
                    lambda host: self._pool.upload_base(host, image, report, stop),
                    f"store the image {image.key}",
                    transfer_seconds(size),
                )
            finally:
                stop.set()
        progress(1.0, "the image is on the host")

    async def delete_base(self, key: str) -> None:
        """Delete a base volume or a partial upload of it; raises `Unusable` while a disk uses it."""
        action = f"delete the image {key}"
        await self._host.call(lambda host: self._pool.delete_base(host, key), action, _QUICK_SECONDS)

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        """Create a disk of that size on top of the base volume, unless there is a complete one."""
        self._require_own(disk)
        action = f"create the disk {disk}"
        await self._host.call(lambda host: self._pool.make_disk(host, disk, base, size_bytes), action, _QUICK_SECONDS)

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        """Create a disk without a base, with that content."""
        self._require_own(disk)
        await transfer.write_disk(self._host, self._pool, disk, size_bytes, chunk_bytes, chunks, content)

    async def delete_disk(self, disk: str) -> None:
        """Delete a disk."""
        self._require_own(disk)
        action = f"delete the disk {disk}"
        await self._host.call(lambda host: self._pool.delete_disk(host, disk), action, _QUICK_SECONDS)

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        """Grow the disk to at least that size: through QEMU while the guest runs, otherwise through the pool."""
        self._require_own(name)

        def ask(host: libvirt.virConnect) -> None:
            if self._pool.disk_bytes(host, disk) >= size_bytes:
                return
            exports.delete_checkpoints(host, name, None)  # their bitmaps have the length of the old disk
            if domains.grow_disk(host, name, size_bytes):
                return
            try:
                self._pool.grow_disk(host, disk, size_bytes)
            except libvirt.libvirtError:  # a QEMU that died left bitmaps in the disk: only a QEMU can remove them
                if not exports.remove_bitmaps(host, name, self._pool.disk_path(host, disk)):
                    raise
                self._pool.grow_disk(host, disk, size_bytes)

        await self._host.call(ask, f"grow the disk of {name}", _QUICK_SECONDS)

    async def export_disk(self, name: str, checkpoint: str, since: str | None, *, freeze: bool = True) -> DiskExport:
        """Start exporting the guest's disk to a file next to it."""
        self._require_own(name)

        def ask(host: libvirt.virConnect) -> DiskExport:
            self._drop_export(host, name)
            self._pool.require_space(host, 0 if since else self._pool.max_export_bytes(host, name))
            return exports.begin(host, name, self._pool.export_path(host, name), checkpoint, since, freeze=freeze)

        return await self._host.call(ask, f"export the disk of {name}", _START_SECONDS)

    async def export_progress(self, name: str) -> float:
        """Progress from 0 to 1.0 (complete)."""
        action = f"report the progress of the export of {name}"
        return await self._host.call(lambda host: exports.progress(host, name), action, _QUICK_SECONDS)

    async def block_map(self, name: str) -> BlockMap:
        """What the complete export holds."""
        return await self._exports.block_map(name)

    async def read_export(self, name: str, offset: int, length: int) -> bytes:
        """Read bytes of the disk from the complete export."""
        return await self._exports.read(name, offset, length)

    async def drop_export(self, name: str) -> None:
        """Abort and delete the export of the guest's disk, if any."""
        self._require_own(name)
        await self._host.call(lambda host: self._drop_export(host, name), f"drop the export of {name}", _START_SECONDS)

    def _drop_export(self, host: libvirt.virConnect, name: str) -> None:
        self._exports.forget(name)
        exports.abort(host, name)
        self._pool.delete_export(host, name)

    async def keep_checkpoint(self, name: str, checkpoint: str | None) -> None:
        """Delete all checkpoints of the guest's disk but that one."""
        self._require_own(name)
        action = f"delete checkpoints of {name}"
        await self._host.call(lambda host: exports.delete_checkpoints(host, name, checkpoint), action, _START_SECONDS)

    async def ensure_thawed(self, name: str) -> bool | None:
        """Have the guest's file systems thawed, and see whether it writes."""
        self._require_own(name)
        return await self._host.call(lambda host: exports.ensure_thawed(host, name), f"thaw {name}", _START_SECONDS)

    async def write_seed(self, name: str, content: bytes) -> None:
        """Write or replace the guest's seed."""
        self._require_own(name)
        action = f"write the seed of {name}"
        await self._host.call(lambda host: self._pool.write_seed(host, name, content), action, _QUICK_SECONDS)

    async def define(self, spec: GuestSpec) -> None:
        """Define or redefine the guest."""
        self._require_own(spec.name)

        def ask(host: libvirt.virConnect) -> None:
            domains.define(host, spec, build(spec, self._files(host, spec), self._virtualization(host)[0]))
            self._pool.make_portable(host, spec.name, spec.disk)
            self._networks.forget(spec.name)

        await self._host.call(ask, f"define the guest {spec.name}", _QUICK_SECONDS)

    async def power_on(self, name: str) -> None:
        """Start or resume the guest."""
        self._require_own(name)

        def ask(host: libvirt.virConnect) -> None:
            connect.make_ready(self._choice, self._data)  # its log daemon, too: libvirt starts no guest without one
            domains.power_on(host, name)

        await self._host.call(ask, f"start the guest {name}", _START_SECONDS)

    async def resume(self, name: str) -> None:
        """Let a guest go on that the host has paused."""
        self._require_own(name)
        await self._host.call(lambda host: domains.resume(host, name), f"resume the guest {name}", _QUICK_SECONDS)

    async def request_shutdown(self, name: str) -> None:
        """Press the ACPI power button."""
        self._require_own(name)
        action = f"press the power button of {name}"
        await self._host.call(lambda host: domains.request_shutdown(host, name), action, _QUICK_SECONDS)

    async def power_off(self, name: str) -> None:
        """Power off at once."""
        self._require_own(name)
        await self._host.call(lambda host: domains.power_off(host, name), f"power off the guest {name}", _STOP_SECONDS)

    async def is_up(self, name: str) -> bool:
        """Whether a forwarded port of the guest sends anything, or on a remote host its agent answers."""
        action = f"look whether {name} is up"
        network = await self._host.call(lambda host: self._networks.running(host, name), action, _QUICK_SECONDS)
        if network is None:
            await self._port_probes.stop(name)
            return False
        if not network.forwards or not connect.is_local(self._choice.uri):
            return await self._host.call(lambda host: domains.pings(host, name), action, _QUICK_SECONDS)
        return await self._port_probes.responds(name, network.address, [one.host_port for one in network.forwards])

    async def boot_signs(self, name: str) -> BootSigns:
        """How far the guest's boot is, by its agent, its serial console and its disk."""

        def ask(host: libvirt.virConnect) -> BootSigns:
            domain = domains.find(host, name)
            if domain is None or self._networks.running(host, name) is None:
                return BootSigns()
            return domains.boot_signs(host, domain, self._logs.tail(host, name))

        return await self._host.call(ask, f"look at the boot of {name}", _QUICK_SECONDS)

    async def remove(self, name: str) -> None:
        """Power off and undefine the guest, and delete its disks, export and seed."""
        self._require_own(name)

        def ask(host: libvirt.virConnect) -> None:
            domains.power_off(host, name)
            domains.undefine(host, name)
            self._logs.delete(host, name)
            self._pool.delete_guest(host, name)

        await self._host.call(ask, f"remove the guest {name}", _STOP_SECONDS)
        self._networks.forget(name)
        self._exports.forget(name)
        await self._port_probes.stop(name)

    async def stats(self, name: str) -> GuestStats:
        """Statistics of a guest; all None if it is not running."""

        def ask(host: libvirt.virConnect) -> GuestStats:
            domain = domains.find(host, name)
            network = None if domain is None else self._networks.running(host, name)
            return GuestStats() if domain is None or network is None else stats.measure(host, domain, network.mac)

        return await self._host.call(ask, f"measure the guest {name}", _QUICK_SECONDS)

    async def run_in_guest(
        self, name: str, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 10
    ) -> GuestRun | None:
        """Run a program through the guest's agent."""
        self._require_own(name)

        def ask(host: libvirt.virConnect) -> GuestRun | None:
            domain = domains.find(host, name)
            if domain is None or self._networks.running(host, name) is None:
                return None
            return agent.run(domain, argv, stdin, timeout_seconds)

        return await self._host.call(ask, f"run a program in the guest {name}", _QUICK_SECONDS + timeout_seconds)

    def watch(self, changed: Callable[[str], None], rebooted: Callable[[str], None] | None = None) -> None:
        """Call `changed(guest name)` from libvirt's event thread when something happens to a guest."""
        self._watchers.append(changed)
        if rebooted is not None:
            self._reboot_watchers.append(rebooted)

    async def console(self, name: str) -> Console:
        """Open the guest's serial console; raises `Unusable` if the guest is not running."""
        action = f"open the console of {name}"
        stream = await self._host.call(lambda host: open_console(host, name), action, _QUICK_SECONDS)
        return Console(stream, asyncio.get_running_loop())

    async def close(self) -> None:
        """Disconnect from the host; guests keep running."""
        self._watchers.clear()
        await self._port_probes.close()
        self._reboot_watchers.clear()
        await self._host.close()

    def _find_uri(self) -> str:
        return connect.make_ready(self._choice, self._data)

    def _on_connect(self) -> None:
        self._networks.clear()
        connect.remember(self._choice, self._data)

    def _on_change(self, name: str) -> None:
        """In libvirt's event thread."""
        if name.startswith(self._prefix):
            self._networks.forget(name)
            for changed in tuple(self._watchers):
                changed(name)

    def _on_reboot(self, name: str) -> None:
        """In libvirt's event thread."""
        if name.startswith(self._prefix):
            for rebooted in tuple(self._reboot_watchers):
                rebooted(name)

    def _virtualization(self, host: libvirt.virConnect) -> tuple[str, str]:
        with self._virt_lock:
            if self._virt is None:
                self._virt = probe_kvm() if connect.is_local(self._choice.uri) else domains.detect_kvm(host)
            return self._virt

    def _files(self, host: libvirt.virConnect, spec: GuestSpec) -> Files:
        folder = self._pool.path(host)
        base = self._pool.base_paths(host, spec.base) if spec.direct_kernel else None
        return Files(
            disk=self._pool.disk_path(host, spec.disk),
            seed=str(folder / f"{spec.name}-seed.iso"),
            kernel=base and base.kernel,
            initrd=base and base.initrd,
            serial_log=self._logs.prepare(host, spec.name),
            nvram=str(folder / f"{spec.name}-nvram.fd"),
        )

    def _require_own(self, name: str) -> None:
        if not name.startswith(self._prefix):
            raise Unusable(f"{name} does not belong to this vpsd.")
