"""A server that waits for something outside vpsd says what that is, without anything of its operator's."""

from pathlib import Path
from typing import Any

import pytest

from tests.cloud import Cloud
from vpsd.catalog.models import OperatingSystem
from vpsd.errors import Unavailable
from vpsd.hypervisor.protocol import Image, Progress
from vpsd.images.simulated import SimulatedImages
from vpsd.servers import updates

SERVERS = "/api/v1/servers/"
HOST = "Waiting for its host, which does not answer as it should. It is tried again by itself."
IMAGE = "Waiting for the image of Debian 12, which cannot be had now. It is tried again by itself."
ADDRESS = "Waiting for an address: all of them are in use, or rest. It is tried again by itself."
STORE = "Waiting for the backups' store, which does not answer as it should. It is tried again by itself."


class NoNetwork(SimulatedImages):
    """Images that cannot be downloaded until there is a network."""

    is_up = False

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        if not self.is_up:
            raise Unavailable("http://mirror.operator.example/debian cannot be reached: see /srv/vpsd/build.log")
        return await super().ensure(system, progress)


async def shown(cloud: Cloud, server: int) -> Any:
    """What customers see of a server and of its last operation: status, and twice what it waits for."""
    detail = (await cloud.get(f"{SERVERS}{server}/")).json()
    (*_, operation) = await cloud.operations(server)
    return detail["status"], detail["status_detail"], operation["detail"]


async def test_a_server_whose_image_cannot_be_downloaded_says_so_until_it_is(cloud: Cloud) -> None:
    images = NoNetwork()
    await cloud.compose(images)
    server = await cloud.create(os_id=3)
    assert await shown(cloud, server) == ("provisioning", None, None)
    for _ in range(2):
        await cloud.work()
        assert await shown(cloud, server) == ("provisioning", IMAGE, IMAGE)
        cloud.clock.advance(10)
    images.is_up = True

    async def is_taken_back(call: str) -> None:
        if call == "ensure_disk":
            assert (await shown(cloud, server))[:2] == ("provisioning", None)

    cloud.hypervisor.before_call = is_taken_back
    await cloud.work()
    assert (await shown(cloud, server))[:2] == ("active", None)
    assert "ensure_disk" in cloud.hypervisor.calls


@pytest.mark.parametrize(("action", "status"), [("start", "starting"), ("stop", "stopping"), ("reboot", "rebooting")])
async def test_a_host_that_is_away_is_waited_for_and_said(cloud: Cloud, action: str, status: str) -> None:
    server = await cloud.have_server()
    if action == "start":
        await cloud.post(f"{SERVERS}{server}/stop/")
        await cloud.work()
    await cloud.post(f"{SERVERS}{server}/{action}/")
    cloud.hypervisor.broken = True
    await cloud.work()
    assert await shown(cloud, server) == (status, HOST, HOST)
    cloud.hypervisor.broken = False
    await cloud.settle()
    assert (await shown(cloud, server))[1] is None


async def test_an_address_and_a_store_of_backups_are_waited_for_and_said(cloud: Cloud, tmp_path: Path) -> None:
    server = await cloud.have_server()
    cloud.set(address_pool="127.91.0.0/29")
    others = [await cloud.create(f"web-{number}") for number in range(6)]
    await cloud.work()
    assert ("provisioning", ADDRESS, ADDRESS) in [await shown(cloud, other) for other in others]

    def away(_: str) -> None:
        raise Unavailable(f"directory {tmp_path}: Input/output error")

    cloud.target.before_call = away
    await cloud.post(f"{SERVERS}{server}/backup/")
    await cloud.work()
    assert await shown(cloud, server) == ("active", None, STORE)  # the server itself waits for nothing


async def test_what_else_there_is_to_say_of_a_server_stays(cloud: Cloud) -> None:
    server = await cloud.have_server()
    await cloud.post(f"{SERVERS}{server}/reboot/")
    async with cloud.writing() as ctx:
        await updates.set_status_detail(ctx, server, "Frozen for a backup.")
    cloud.hypervisor.broken = True
    await cloud.work()
    assert (await shown(cloud, server))[1:] == ("Frozen for a backup.", HOST)


async def test_a_command_that_takes_over_waits_for_nothing_yet(cloud: Cloud) -> None:
    server = await cloud.create()
    cloud.hypervisor.broken = True
    await cloud.work()
    cloud.set(undelete_hours=0)
    await cloud.ask("DELETE", f"{SERVERS}{server}/")
    assert (await cloud.row(server)).status_detail is None
