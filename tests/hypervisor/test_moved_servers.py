"""A real server is moved between two real hosts, as the operator asks for it over the API."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.cloud import Cloud
from tests.hypervisor.two_hosts import Lab
from vpsd.audit import Audit
from vpsd.catalog.models import OperatingSystem
from vpsd.core.clock import SystemClock
from vpsd.core.context import OPERATOR
from vpsd.core.jumps import ClockJumps
from vpsd.hosts import service as hosts
from vpsd.hosts.models import Address, HostState
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor
from vpsd.hypervisor.protocol import Image, Progress
from vpsd.runtime import Hypervisors
from vpsd.servers.moving import NO_ADDRESS
from vpsd.worker.runner import Runner

_BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class TinyImages:
    """The tiny image alone."""

    def __init__(self, image: Image) -> None:
        self._image = image

    async def ensure(self, _system: OperatingSystem, _progress: Progress) -> Image:
        return self._image

    def find(self, _system: OperatingSystem, key: str) -> Image | None:
        return self._image if key == self._image.key else None

    def cloud_config_schema(self, _system: OperatingSystem) -> str | None:
        return None


class RealCloud:
    """vpsd with two hosts of libvirt, and a clock that goes by itself."""

    def __init__(self, cloud: Cloud, lab: Lab, key: Path) -> None:
        self._cloud, self._lab, self._key = cloud, lab, key
        self.server = 0

    async def open(self, tiny: Image) -> None:
        cloud, clock = self._cloud, SystemClock()
        cloud.settings = msgspec.structs.replace(cloud.settings, boot_timeout_seconds=120)
        async with cloud.runtime.write(OPERATOR) as ctx:
            await hosts.change_host(ctx, cloud.runtime.host_id, state=HostState.DISABLED)
            for number, host in enumerate(self._lab.hosts, 1):
                pool = str(host.folder / "pool")
                await hosts.add_host(ctx, f"node{number}", "libvirt", uri=host.uri, pool=pool)
            self.hosts = (await hosts.list_hosts(ctx))[1:]
        cloud.runtime = msgspec.structs.replace(
            cloud.runtime,
            clock=clock,
            jumps=ClockJumps(clock),
            settings=cloud.settings,
            images=TinyImages(tiny),
            hypervisors=Hypervisors(self._connect),
        )
        cloud.http = cloud._http()
        self.drivers = [cloud.runtime.hypervisors.at(host) for host in self.hosts]
        await self.let_in(1)

    def _connect(self, address: Address) -> Any:
        if address.uri is None:
            return self._cloud.hypervisor
        pool, data = Path(address.pool or ""), self._lab.folder / "data"
        return LibvirtHypervisor(self._cloud.instance, data, uri=address.uri, pool_path=pool, virt_type="qemu")

    async def let_in(self, number: int) -> None:
        """Only that host gets servers."""
        async with self._cloud.runtime.write(OPERATOR) as ctx:
            for position, host in enumerate(self.hosts, 1):
                state = HostState.ENABLED if position == number else HostState.DISABLED
                await hosts.change_host(ctx, host.id, state=state)

    async def work(self) -> None:
        """Do what is due."""
        runner = Runner(self._cloud.runtime, "worker", tick=asyncio.sleep)
        while await runner.run_once():
            pass

    async def ssh(self, at: int, command: str) -> str:
        """What a command in the guest says, on the host with that number."""
        (held,) = await self._cloud.addresses()
        flags = [
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]
        line = ["ssh", "-i", str(self._key), *flags, f"root@{held.address}", command]
        done = await asyncio.to_thread(self._lab.hosts[at - 1].run, *line)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    async def assert_at(self, number: int, status: str) -> None:
        """Row, guest and disk say that the server is there, and nothing is left on the other host."""
        row = await self._cloud.row(self.server)
        assert (row.host_id, row.previous_host_id, row.status) == (self.hosts[number - 1].id, None, status)
        assert row.status_detail == (NO_ADDRESS if status == "active" else None)
        name = self._cloud.guest(self.server)
        for position, driver in enumerate(self.drivers, 1):
            volumes, is_here = await driver.volumes(), position == number
            assert set(await driver.guests()) == ({name} if is_here else set())
            assert set(volumes.disks) == ({await self._cloud.disk(self.server)} if is_here else set())
        assert await Audit(self._cloud.runtime).run() == []


@pytest.fixture
async def real_cloud(cloud: Cloud, lab: Lab, tiny: Image, key: Path) -> AsyncIterator[RealCloud]:
    """A cloud on them."""
    made = RealCloud(cloud, lab, key)
    await made.open(tiny)
    yield made
    for driver in made.drivers:
        await driver.remove(cloud.guest(made.server))
        await driver.close()


@pytest.mark.guest
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_real_server_is_moved_while_it_runs_and_while_it_is_off(
    cloud: Cloud, real_cloud: RealCloud, key: Path
) -> None:
    operator = await cloud.token("operator:*", who="charlie")
    made = {"name": "laptop", "public_key": key.with_suffix(".pub").read_text().strip()}
    known = (await cloud.post("/api/v1/ssh-keys/", made)).json()["id"]
    real_cloud.server = await cloud.create(ssh_key_id=known)
    migrate = f"/api/v1/operator/servers/{real_cloud.server}/migrate/"
    await real_cloud.work()
    await real_cloud.assert_at(1, "active")
    before = await real_cloud.ssh(1, f"echo kept > /root/note; sync; {_BOOT_ID}")

    await real_cloud.let_in(2)
    assert (await cloud.post(migrate, who=operator)).json()["to_host"] == "node2"
    await real_cloud.work()
    (*_, operation) = await cloud.operations(real_cloud.server)
    assert (operation["status"], operation["detail"]) == ("succeeded", "moved while it ran"), operation
    await real_cloud.assert_at(2, "active")
    assert await real_cloud.ssh(2, f"cat /root/note; {_BOOT_ID}") == f"kept\n{before}"

    await cloud.post(f"/api/v1/servers/{real_cloud.server}/power/", {"action": "hard_stop"})
    await real_cloud.work()
    await real_cloud.let_in(1)
    assert (await cloud.post(migrate, who=operator)).json()["to_host"] == "node1"
    await real_cloud.work()
    await real_cloud.assert_at(1, "stopped")
    await cloud.post(f"/api/v1/servers/{real_cloud.server}/start/")
    await real_cloud.work()
    await real_cloud.assert_at(1, "active")
    note, boot_id = (await real_cloud.ssh(1, f"cat /root/note; {_BOOT_ID}")).splitlines()
    assert (note, boot_id != before) == ("kept", True)
