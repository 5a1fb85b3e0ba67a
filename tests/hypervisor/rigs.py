"""A host to test on, simulated or real, with the hands that reach behind vpsd's back."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from vpsd.hypervisor.libvirt import daemon
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor
from vpsd.hypervisor.protocol import DiskExport, Forward, GuestSpec, Hypervisor, Image, PowerState, guest_name
from vpsd.hypervisor.simulator import Simulator

INSTANCE = "c0ffee00"
NAME = guest_name(INSTANCE, 1)
DISK_BYTES = 256 << 20


class Rig(Protocol):
    """What a contract test needs beside the hypervisor."""

    hypervisor: Hypervisor
    image: Image
    spec: GuestSpec
    seed: bytes

    def crash(self) -> None:
        """The guest's QEMU dies."""

    def ports_taken(self) -> contextlib.AbstractContextManager[None]:
        """Somebody has the guest's ports."""

    def read_seed(self) -> bytes:
        """The seed, as it lies on the host."""

    def disk_bytes(self) -> int:
        """The size of the guest's disk, as the guest sees it."""

    async def until_agent(self) -> None:
        """The guest's agent answers."""

    def write_note(self, disk: str, text: str) -> None:
        """The guest writes a short note to its disk, and has it there."""

    def read_note(self, disk: str) -> str:
        """The guest reads it again."""


def make_spec(image: Image, address: str) -> GuestSpec:
    """The guest of the contract tests."""
    return GuestSpec(
        name=NAME,
        disk=NAME,
        uuid="5f0c2f0e-7a57-4a0c-9f0c-6a1b6d2e9f11",
        vcpus=1,
        memory_mb=128,
        base=image.key,
        direct_kernel=image.kernel is not None,
        cmdline=image.cmdline,
        mac="52:54:00:c0:ff:ee",
        address=address,
        forwards=(Forward(22, 22),),
    )


class SimulatedRig:
    """The simulator's."""

    def __init__(self, image: Image, seed: bytes) -> None:
        self.simulator = Simulator(boot_seconds=0.0)
        self.hypervisor: Hypervisor = self.simulator
        self.image, self.seed = image, seed
        self.spec = make_spec(image, "127.93.0.1")

    def crash(self) -> None:
        self.simulator.happens(NAME, PowerState.CRASHED)

    @contextlib.contextmanager
    def ports_taken(self) -> Iterator[None]:
        self.simulator.low_ports = False
        yield
        self.simulator.low_ports = True

    def read_seed(self) -> bytes:
        return self.simulator.seed(NAME)

    def disk_bytes(self) -> int:
        return self.simulator.disk_bytes(NAME)

    async def until_agent(self) -> None:
        assert self.simulator.has_agent

    def write_note(self, disk: str, text: str) -> None:
        self.simulator.writes(disk, 5 << 20, text.encode().ljust(100))

    def read_note(self, disk: str) -> str:
        return self.simulator.content(disk, 5 << 20, 100).decode().strip("\0 ")


class RealRig:
    """A libvirtd of the test's own, as root."""

    def __init__(self, data: Path, image: Image, seed: bytes, key: Path) -> None:
        self.data, self.key = data, key
        self.hypervisor: Hypervisor = LibvirtHypervisor(INSTANCE, data, uri=None, machine=RootWithoutLibvirt())
        self.image, self.seed = image, seed
        number = os.getpid()
        self.spec = make_spec(image, f"127.93.{number // 200 % 250 + 1}.{number % 200 + 1}")

    def crash(self) -> None:
        os.kill(self.qemu_pid(), signal.SIGKILL)

    def qemu_pid(self) -> int:
        """The process that is the guest."""
        return int((daemon.state_dir(self.data) / "run" / "qemu" / f"{NAME}.pid").read_text())

    @contextlib.contextmanager
    def ports_taken(self) -> Iterator[None]:
        with socket.create_server((self.spec.address, self.spec.forwards[0].host_port)):
            yield

    def read_seed(self) -> bytes:
        return (self.data / "pool" / f"{NAME}-seed.iso").read_bytes()

    def disk_bytes(self) -> int:
        disk = self.data / "pool" / f"{NAME}.qcow2"
        told = subprocess.run(["qemu-img", "info", "-U", "--output=json", disk], capture_output=True, check=True)
        size: int = json.loads(told.stdout)["virtual-size"]
        return size

    def make_older(self) -> None:
        """Make the disk of a guest that is off one of version 2."""
        disk = self.data / "pool" / f"{NAME}.qcow2"
        subprocess.run(["qemu-img", "amend", "-q", "-o", "compat=0.10", disk], check=True)

    async def until_agent(self) -> None:
        async def tells() -> bool:
            return (await self.hypervisor.stats(NAME)).disk_used_bytes is not None

        await until(tells)

    def write_note(self, disk: str, text: str) -> None:
        self.ssh(f"echo {text} > /root/note; sync").check_returncode()

    def read_note(self, disk: str) -> str:
        return self.ssh("cat /root/note").stdout.strip()

    def ssh(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run something in the guest."""
        options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
        flags = [part for option in options for part in ("-o", option)]
        line = ["ssh", "-i", str(self.key), *flags, f"root@{self.spec.address}", command]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


class RootWithoutLibvirt:
    """The machine as the private daemon needs it, whatever else runs there."""

    def is_root(self) -> bool:
        return True

    def system_answers(self) -> bool:
        return False

    def used_before(self, data: Path) -> str | None:
        return None

    def missing_programs(self) -> list[str]:
        return []


def silent(_: float, __: str) -> None:
    """Progress that nobody looks at."""


async def prepare(rig: Rig) -> None:
    """Everything that a guest needs to be powered on."""
    await rig.hypervisor.ensure_base(rig.image, silent)
    await rig.hypervisor.ensure_disk(NAME, rig.image.key, DISK_BYTES)
    await rig.hypervisor.write_seed(NAME, rig.seed)
    await rig.hypervisor.define(rig.spec)


async def boot(rig: Rig) -> None:
    """Power on, and wait for SSH and the agent: an export that meets an agent which only starts waits for seconds."""
    await rig.hypervisor.power_on(NAME)
    await until(lambda: rig.hypervisor.is_up(NAME))
    with contextlib.suppress(TimeoutError):  # an agent that does not come up at all is no reason to fail here
        async with asyncio.timeout(30):
            await rig.until_agent()


async def power(rig: Rig) -> PowerState | None:
    """What the host says of the guest."""
    guest = await rig.hypervisor.guest(NAME)
    return None if guest is None else guest.power


async def until(holds: Callable[[], Awaitable[bool]], limit_seconds: float = 90) -> None:
    """Ask until it holds."""
    async with asyncio.timeout(limit_seconds):
        while not await holds():
            await asyncio.sleep(0.1)


async def shut_down(rig: Rig) -> None:
    """Press the button until the guest is off: one that has just begun to answer may not listen for it yet."""

    async def is_off() -> bool:
        await rig.hypervisor.request_shutdown(NAME)
        return await power(rig) is PowerState.OFF

    await until(is_off)


async def until_power(rig: Rig, wanted: PowerState) -> None:
    """Wait for the host to say so."""

    async def is_so() -> bool:
        return await power(rig) is wanted

    await until(is_so)


class Picture:
    """A disk as copies of it say, chunk by chunk."""

    CHUNK_BYTES = 1 << 20

    def __init__(self) -> None:
        self.size_bytes = 0
        self.chunks: dict[int, bytearray] = {}

    async def lay(self, host: Hypervisor) -> int:
        """Lay the whole copy that is there over it; returns how many bytes that were."""
        copied = await host.block_map(NAME)
        self.size_bytes = copied.size_bytes
        for extent in copied.extents:
            content = memoryview(
                bytes(extent.length) if extent.zero else await host.read_export(NAME, extent.offset, extent.length)
            )  # so that taking the rest of it copies nothing
            at = extent.offset
            while content:
                number, start = divmod(at, self.CHUNK_BYTES)
                chunk = self.chunks.setdefault(number, bytearray(self.CHUNK_BYTES))
                part = content[: self.CHUNK_BYTES - start]
                chunk[start : start + len(part)] = part
                at, content = at + len(part), content[len(part) :]
        return sum(extent.length for extent in copied.extents)

    async def write(self, host: Hypervisor, disk: str) -> None:
        """Make a disk that looks like it."""
        numbers = sorted(self.chunks)

        async def content() -> AsyncIterator[bytes]:
            for number in numbers:
                yield bytes(self.chunks[number])[: self.size_bytes - number * self.CHUNK_BYTES]

        await host.write_disk(disk, self.size_bytes, self.CHUNK_BYTES, numbers, content())


async def copy(rig: Rig, checkpoint: str, since: str | None, *, freeze: bool = True) -> DiskExport:
    """Copy the disk, to the end."""
    started = await rig.hypervisor.export_disk(NAME, checkpoint, since, freeze=freeze)

    async def is_whole() -> bool:
        return await rig.hypervisor.export_progress(NAME) == 1.0

    await until(is_whole)
    return started


async def boot_from(rig: Rig, disk: str) -> None:
    """Give the guest another disk, and boot it."""
    await rig.hypervisor.power_off(NAME)
    rig.spec = msgspec.structs.replace(rig.spec, disk=disk)
    await rig.hypervisor.define(rig.spec)
    await boot(rig)
