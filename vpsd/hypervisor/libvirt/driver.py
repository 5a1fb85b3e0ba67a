"""Real guests: the driver of `vpsd.hypervisor.protocol` for QEMU under libvirt."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import libvirt

from vpsd.errors import Unusable
from vpsd.hypervisor.libvirt import connect, copies, domains, figures, qcow2
from vpsd.hypervisor.libvirt.answer import Knocking
from vpsd.hypervisor.libvirt.connection import Connection
from vpsd.hypervisor.libvirt.console import Console
from vpsd.hypervisor.libvirt.domain_xml import SSH_PORT, Files, Wiring, build, read_wiring
from vpsd.hypervisor.libvirt.failures import is_absent, translate
from vpsd.hypervisor.libvirt.states import power_of
from vpsd.hypervisor.libvirt.storage import Pool
from vpsd.hypervisor.libvirt.threads import Threads
from vpsd.hypervisor.libvirt.volumes import Upload, receive, send_bytes
from vpsd.hypervisor.probe import probe_kvm
from vpsd.hypervisor.protocol import (
    Copied,
    Copying,
    Guest,
    GuestSpec,
    HostFacts,
    Image,
    Power,
    Progress,
    Usage,
    Volumes,
)

T = TypeVar("T")

_THREADS = 8
_QUICK_SECONDS = 20.0
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_CONNECT_SECONDS = 60.0  # on top, when there is no connection yet: a daemon's first look at QEMU takes its time
_UPLOAD_SECONDS = 120.0
_UPLOAD_BYTES_PER_SECOND = 1 << 20  # slower than that is no upload


class LibvirtHypervisor:
    """The host of one vpsd. Connects at the first call."""

    def __init__(
        self,
        instance: str,
        data: Path,
        uri: str | None = None,
        pool_path: Path | None = None,
        virt_type: str | None = None,
        machine: connect.Machine | None = None,
    ) -> None:
        """`uri`, `pool_path` and `virt_type` are the operator's wishes; without them they are found out.

        Raises `Misconfigured` where no libvirt can be had.
        """
        connect.refuse_without_binding()
        self._prefix = f"vpsd-{instance}-"
        self._data = data
        self._choice = connect.choose(uri, data, machine or connect.ThisMachine())
        path = connect.choose_pool_path(self._choice, instance, data, pool_path)
        self._pool = Pool(instance, path, path_is_wanted=pool_path is not None)
        self._virt = None if virt_type is None else (virt_type, "set by VPSD_VIRT_TYPE")
        self._virt_lock = threading.Lock()
        self._connection = Connection(self._find_uri, self._on_connect, self._on_change)
        self._threads = Threads(_THREADS)
        self._wirings: dict[str, tuple[str, int, Wiring]] = {}  # by name: uuid and run that they were read of
        self._watchers: list[Callable[[str], None]] = []
        self._uploads: dict[str, asyncio.Lock] = {}
        self._knockings: dict[str, Knocking] = {}
        self._maps: dict[str, qcow2.Map] = {}  # of copies that are being read

    async def facts(self) -> HostFacts:
        """Say what the host is. Connects when needed."""

        def ask(host: libvirt.virConnect) -> HostFacts:
            virt_type, reason = self._virtualization(host)
            memory = host.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)  # getInfo misses hotplugged memory
            return HostFacts(
                driver="libvirt",
                uri=self._choice.uri,
                virt_type=virt_type,
                virt_reason=reason,
                version=f"libvirt {_version(host.getLibVersion())}, QEMU {_version(host.getVersion())}",
                name=host.getHostname(),
                cpus=host.getInfo()[2],
                memory_mb=memory["total"] // 1024,
                storage_gb=self._pool.capacity_gb(host),
                low_ports=connect.may_open_low_ports(self._choice),
            )

        return await self._call(ask, "say what it is", _QUICK_SECONDS)

    async def guests(self) -> Mapping[str, Guest]:
        """All guests of this vpsd by name, in one round trip."""

        def ask(host: libvirt.virConnect) -> dict[str, Guest]:
            found = {}
            for domain, stats in host.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
                if domain.name().startswith(self._prefix):
                    guest = self._read(domain, stats["state.state"], stats["state.reason"])
                    if guest is not None:
                        found[guest.name] = guest
            return found

        return await self._call(ask, "list its guests", _QUICK_SECONDS)

    async def guest(self, name: str) -> Guest | None:
        """One guest, or None when the host does not know it."""

        def ask(host: libvirt.virConnect) -> Guest | None:
            domain = domains.find(host, name)
            return None if domain is None else self._read(domain, *domain.state())

        return await self._call(ask, f"look for the guest {name}", _QUICK_SECONDS)

    async def volumes(self) -> Volumes:
        """What lies in the pool of this vpsd."""
        return await self._call(self._pool.list, "list its volumes", _QUICK_SECONDS)

    async def ensure_base(self, image: Image, progress: Progress) -> None:
        """Have the image's files on the host, whole; one upload of an image at a time, the others wait for it."""
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def report(fraction: float, text: str) -> None:
            loop.call_soon_threadsafe(progress, fraction, text)

        files = [file for file in (image.disk, image.kernel, image.initrd) if file is not None]
        size = sum(file.stat().st_size for file in files)
        limit = _UPLOAD_SECONDS + size / _UPLOAD_BYTES_PER_SECOND
        async with self._uploads.setdefault(image.key, asyncio.Lock()):
            try:
                await self._call(
                    lambda host: self._pool.upload_base(host, image, report, stop), f"take the image {image.key}", limit
                )
            finally:
                stop.set()
        progress(1.0, "the image is on the host")

    async def delete_base(self, key: str) -> None:
        """Take a base volume off the host, or what an upload left; refuses while a disk stands on it."""
        doing = f"delete the image {key}"
        await self._call(lambda host: self._pool.delete_base(host, key), doing, _QUICK_SECONDS)

    async def ensure_disk(self, disk: str, base: str, size_bytes: int) -> None:
        """Have a disk of that size on top of the base volume; one that is there, whole, is left as it is."""
        self._refuse_foreign(disk)
        doing = f"make the disk {disk}"
        await self._call(lambda host: self._pool.make_disk(host, disk, base, size_bytes), doing, _QUICK_SECONDS)

    async def write_disk(
        self, disk: str, size_bytes: int, chunk_bytes: int, chunks: Sequence[int], content: AsyncIterator[bytes]
    ) -> None:
        """Have a disk with that content: one stream from its tables to its end, then its first cluster."""
        self._refuse_foreign(disk)
        plan = await asyncio.to_thread(qcow2.plan_file, size_bytes, chunk_bytes, chunks)
        doing = f"take the disk {disk}"
        volume = await self._call(
            lambda host: self._pool.begin_disk(host, disk, plan.file_bytes), doing, _QUICK_SECONDS
        )
        if volume is None:
            return
        rest = plan.file_bytes - len(plan.header)
        upload = await self._call(lambda _: Upload(volume, rest, len(plan.header)), doing, _QUICK_SECONDS)
        try:
            await self._send(upload, plan.tables, doing)
            async for chunk in content:
                await self._send(upload, qcow2.padded(chunk), doing)
            await self._call(lambda _: upload.finish(), doing, _UPLOAD_SECONDS)
        except BaseException:
            await self._threads.call(upload.abort, doing, _QUICK_SECONDS)
            raise
        await self._call(lambda _: send_bytes(volume, plan.header), doing, _QUICK_SECONDS)

    async def _send(self, upload: Upload, data: bytes, doing: str) -> None:
        limit = _UPLOAD_SECONDS + len(data) / _UPLOAD_BYTES_PER_SECOND
        await self._call(lambda _: upload.send(data), doing, limit)

    async def delete_disk(self, disk: str) -> None:
        """Take a disk off the host."""
        self._refuse_foreign(disk)
        doing = f"delete the disk {disk}"
        await self._call(lambda host: self._pool.delete_disk(host, disk), doing, _QUICK_SECONDS)

    async def grow_disk(self, name: str, disk: str, size_bytes: int) -> None:
        """Have the disk at least that large: through QEMU while the guest runs, through the pool while it is off."""
        self._refuse_foreign(name)

        def ask(host: libvirt.virConnect) -> None:
            if self._pool.disk_bytes(host, disk) >= size_bytes:
                return
            copies.forget(host, name, None)  # a bitmap of what was written is as long as the disk was
            if domains.grow_disk(host, name, size_bytes):
                return
            try:
                self._pool.grow_disk(host, disk, size_bytes)
            except libvirt.libvirtError:  # bitmaps that a QEMU left when it died: only a QEMU takes them out
                if not copies.clean(host, name, self._pool.disk_path(host, disk)):
                    raise
                self._pool.grow_disk(host, disk, size_bytes)

        await self._call(ask, f"grow the disk of {name}", _QUICK_SECONDS)

    async def copy_disk(self, name: str, mark: str, since: str | None) -> Copying:
        """Begin to copy the guest's disk to beside it."""
        self._refuse_foreign(name)

        def ask(host: libvirt.virConnect) -> Copying:
            self._drop_copy(host, name)
            self._pool.require_room(host, 0 if since else self._pool.copy_bytes(host, name))
            return copies.begin(host, name, self._pool.copy_path(host, name), mark, since)

        return await self._call(ask, f"copy the disk of {name}", _START_SECONDS)

    async def copy_progress(self, name: str) -> float:
        """How far the copy is."""
        doing = f"say how far the copy of {name} is"
        return await self._call(lambda host: copies.progress(host, name), doing, _QUICK_SECONDS)

    async def copied(self, name: str) -> Copied:
        """What the whole copy holds; its map is kept for reading."""

        def ask(host: libvirt.virConnect) -> tuple[qcow2.Map, Copied]:
            volume = self._pool.copy_of(host, name, look=True)
            found = qcow2.read_map(lambda offset, length: receive(volume, offset, length))
            return found, Copied(found.size_bytes, found.runs())

        self._maps[name], copied = await self._call(ask, f"read the copy of {name}", _UPLOAD_SECONDS)
        return copied

    async def read_copy(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of the disk out of the copy."""
        if name not in self._maps:
            await self.copied(name)
        found = self._maps[name]

        def ask(host: libvirt.virConnect) -> bytes:
            volume = self._pool.copy_of(host, name)
            return found.read(lambda at, size: receive(volume, at, size), offset, length)

        limit = _UPLOAD_SECONDS + length / _UPLOAD_BYTES_PER_SECOND
        return await self._call(ask, f"read the copy of {name}", limit)

    async def drop_copy(self, name: str) -> None:
        """Have no copy of the guest's disk."""
        self._refuse_foreign(name)
        await self._call(lambda host: self._drop_copy(host, name), f"drop the copy of {name}", _START_SECONDS)

    def _drop_copy(self, host: libvirt.virConnect, name: str) -> None:
        self._maps.pop(name, None)
        copies.end(host, name)
        self._pool.delete_copy(host, name)

    async def keep_mark(self, name: str, mark: str | None) -> None:
        """Let go of every mark but one."""
        self._refuse_foreign(name)
        await self._call(lambda host: copies.forget(host, name, mark), f"tidy the marks of {name}", _START_SECONDS)

    async def write_seed(self, name: str, content: bytes) -> None:
        """Put the guest's seed on the host."""
        self._refuse_foreign(name)
        doing = f"take the seed of {name}"
        await self._call(lambda host: self._pool.write_seed(host, name, content), doing, _QUICK_SECONDS)

    async def define(self, spec: GuestSpec) -> None:
        """Have the guest defined as given."""
        self._refuse_foreign(spec.name)

        def ask(host: libvirt.virConnect) -> None:
            files = self._files(host, spec)
            domains.define(host, spec, build(spec, files, self._virtualization(host)[0]))
            self._wirings.pop(spec.name, None)

        await self._call(ask, f"define the guest {spec.name}", _QUICK_SECONDS)

    async def power_on(self, name: str) -> None:
        """Start the guest; resumes a paused one."""
        self._refuse_foreign(name)
        await self._call(lambda host: domains.power_on(host, name), f"start the guest {name}", _START_SECONDS)

    async def request_shutdown(self, name: str) -> None:
        """Press the ACPI power button."""
        self._refuse_foreign(name)
        doing = f"press the power button of {name}"
        await self._call(lambda host: domains.request_shutdown(host, name), doing, _QUICK_SECONDS)

    async def power_off(self, name: str) -> None:
        """Pull the plug."""
        self._refuse_foreign(name)
        await self._call(lambda host: domains.power_off(host, name), f"switch off the guest {name}", _STOP_SECONDS)

    async def is_up(self, name: str) -> bool:
        """Whether the guest's SSH answers now, or on another machine its agent; no waiting beyond a second."""
        wiring = await self._call(lambda host: self._running(host, name), f"look for {name}", _QUICK_SECONDS)
        port = None if wiring is None else wiring.host_port(SSH_PORT)
        if wiring is None:
            await self._stop_knocking(name)
            return False
        if port is None or not connect.is_local(self._choice.uri):
            return await self._call(lambda host: _pings(host, name), f"ask the agent of {name}", _QUICK_SECONDS)
        knocking = self._knockings.get(name)
        if knocking is None or not knocking.is_of(wiring.address, port):
            await self._stop_knocking(name)
            knocking = self._knockings[name] = Knocking(wiring.address, port, time.monotonic)
        greeted = await knocking.look()
        if greeted:
            await self._stop_knocking(name)
        return greeted

    async def _stop_knocking(self, name: str) -> None:
        knocking = self._knockings.pop(name, None)
        if knocking is not None:
            await knocking.stop()

    async def remove(self, name: str) -> None:
        """Power off, undefine, and delete disk and seed."""
        self._refuse_foreign(name)

        def ask(host: libvirt.virConnect) -> None:
            domains.power_off(host, name)
            domains.undefine(host, name)
            self._pool.delete_guest(host, name)

        await self._call(ask, f"remove the guest {name}", _STOP_SECONDS)
        self._wirings.pop(name, None)
        self._maps.pop(name, None)
        await self._stop_knocking(name)

    async def usage(self, name: str) -> Usage:
        """Measured figures of a guest; all None for one that is not running."""

        def ask(host: libvirt.virConnect) -> Usage:
            domain = domains.find(host, name)
            wiring = None if domain is None else self._running(host, name)
            return Usage() if domain is None or wiring is None else figures.measure(host, domain, wiring.mac)

        return await self._call(ask, f"measure the guest {name}", _QUICK_SECONDS)

    def watch(self, changed: Callable[[str], None]) -> None:
        """Call `changed(guest name)` from libvirt's event thread when something happens to a guest."""
        self._watchers.append(changed)

    async def console(self, name: str) -> Console:
        """Open the guest's serial console; raises `Unusable` for a guest that is not running."""

        def ask(host: libvirt.virConnect) -> libvirt.virStream:
            domain = domains.find(host, name)
            if domain is None or not domain.isActive():
                raise Unusable(f"The guest {name} is not running: it has no console.")
            stream = host.newStream(libvirt.VIR_STREAM_NONBLOCK)
            domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
            return stream

        stream = await self._call(ask, f"open the console of {name}", _QUICK_SECONDS)
        return Console(stream, asyncio.get_running_loop())

    async def close(self) -> None:
        """Let go of the host; guests go on running."""
        self._watchers.clear()
        for name in list(self._knockings):
            await self._stop_knocking(name)
        await self._threads.call(self._connection.close, "let go", _QUICK_SECONDS)
        self._threads.close()

    async def _call(self, work: Callable[[libvirt.virConnect], T], doing: str, limit_seconds: float) -> T:
        """Do something with the connected host; once more when the connection broke, as a restart of libvirtd does."""

        def run() -> T:
            try:
                return work(self._connection.get())
            except libvirt.libvirtError as error:
                if not self._connection.is_lost():
                    raise translate(error, doing) from error
            try:
                return work(self._connection.get())
            except libvirt.libvirtError as error:
                raise translate(error, doing) from error

        extra = _CONNECT_SECONDS if self._connection.is_lost() else 0.0
        return await self._threads.call(run, doing, limit_seconds + extra)

    def _find_uri(self) -> str:
        return connect.make_ready(self._choice, self._data)

    def _on_connect(self) -> None:
        self._wirings.clear()
        connect.remember(self._choice, self._data)

    def _on_change(self, name: str) -> None:
        """In libvirt's event thread."""
        if name.startswith(self._prefix):
            self._wirings.pop(name, None)
            for changed in tuple(self._watchers):
                changed(name)

    def _virtualization(self, host: libvirt.virConnect) -> tuple[str, str]:
        with self._virt_lock:
            if self._virt is None:
                local = connect.is_local(self._choice.uri)
                self._virt = probe_kvm() if local else domains.ask_for_kvm(host)
            return self._virt

    def _files(self, host: libvirt.virConnect, spec: GuestSpec) -> Files:
        folder = self._pool.path(host)
        base = self._pool.base_paths(host, spec.base) if spec.direct_kernel else None
        return Files(
            disk=self._pool.disk_path(host, spec.disk),
            seed=str(folder / f"{spec.name}-seed.iso"),
            kernel=base and base.kernel,
            initrd=base and base.initrd,
        )

    def _read(self, domain: libvirt.virDomain, state: int, reason: int) -> Guest | None:
        try:
            wiring = self._wiring(domain)
        except libvirt.libvirtError as error:
            if is_absent(error):
                return None
            raise
        return Guest(domain.name(), domain.UUIDString(), power_of(state, reason), wiring.forwards)

    def _wiring(self, domain: libvirt.virDomain) -> Wiring:
        """The guest's network as it is now; read once for each run of the guest."""
        name, uuid, run = domain.name(), domain.UUIDString(), domain.ID()
        known = self._wirings.get(name)
        if known is not None and known[:2] == (uuid, run):
            return known[2]
        wiring = read_wiring(domain.XMLDesc(0))
        self._wirings[name] = (uuid, run, wiring)
        return wiring

    def _running(self, host: libvirt.virConnect, name: str) -> Wiring | None:
        """The network of a guest that runs."""
        guest = domains.find(host, name)
        if guest is None or power_of(*guest.state()) is not Power.RUNNING:
            return None
        return self._wiring(guest)

    def _refuse_foreign(self, name: str) -> None:
        if not name.startswith(self._prefix):
            raise Unusable(f"{name} is no guest of this vpsd.")


def _pings(host: libvirt.virConnect, name: str) -> bool:
    domain = domains.find(host, name)
    return domain is not None and figures.ask_agent(domain, "guest-ping", timeout_seconds=1) is not None


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
