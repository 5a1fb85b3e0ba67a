"""Plan and disk agree: what needs a larger disk than the plan has is refused, and images say what they need."""

from pathlib import Path

import msgspec
import pytest

from tests.cloud import TINY, Cloud
from tests.images.synthetic import bios_disk
from vpsd.catalog import service as catalog
from vpsd.catalog.models import OperatingSystem
from vpsd.core.units import GIB
from vpsd.hypervisor.protocol import Image, Progress
from vpsd.images.catalogued import measure_images
from vpsd.images.simulated import SimulatedImages
from vpsd.images.store import ImageStore
from vpsd.lifecycle import Status

SERVERS = "/api/v1/servers/"
UBUNTU, DEBIAN, STARTER = 5, 3, 3
SMALLEST = "The smallest plan that fits is Starter VPS (3), with 40 GB."


class Images(SimulatedImages):
    """Images of one size for every system, whatever the catalogue says."""

    def __init__(self, size_bytes: int, firmware: str | None = None) -> None:
        self.size_bytes, self.firmware = size_bytes, firmware

    async def ensure(self, system: OperatingSystem, progress: Progress) -> Image:
        key = f"{system.slug}-{self.size_bytes}"
        return Image(key=key, disk=Path("none"), virtual_size_bytes=self.size_bytes, firmware=self.firmware)


async def sizes(cloud: Cloud) -> dict[int, int | None]:
    found = (await cloud.get("/api/v1/operating-systems/")).json()["results"]
    return {system["id"]: system["min_disk_gb"] for system in found}


async def measure(cloud: Cloud, os_id: int, disk_gb: int) -> None:
    """As an import of an image does."""
    async with cloud.writing() as ctx:
        await catalog.set_image_disk(ctx, os_id, disk_gb)


async def test_systems_say_what_disk_they_need(cloud: Cloud) -> None:
    assert await sizes(cloud) == {1: 1, DEBIAN: 2, UBUNTU: 3}


async def test_a_system_that_needs_a_larger_disk_is_refused_with_the_smallest_plan_that_fits(cloud: Cloud) -> None:
    order = {"name": "web", **TINY, "os_id": UBUNTU}
    for path in (SERVERS, f"{SERVERS}?dry_run=true"):
        answer = await cloud.post(path, order)
        assert answer.status_code == 400
        assert answer.json() == {
            "plan_id": [f"Ubuntu 22.04 LTS needs a disk of 3 GB, and the plan Nano VPS has 2. {SMALLEST}"]
        }
    await cloud.create(os_id=UBUNTU, plan_id=STARTER)
    await cloud.create("small", os_id=DEBIAN)  # which needs just as much as the plan has


async def test_the_smallest_plan_is_the_one_with_the_smallest_disk(cloud: Cloud) -> None:
    await cloud.offer(5, storage_gb=3)
    answer = await cloud.post(SERVERS, {"name": "web", **TINY, "os_id": UBUNTU})
    assert answer.json()["plan_id"][0].endswith("The smallest plan that fits is Plan 5 (5), with 3 GB.")


async def test_a_system_that_fits_on_no_plan_is_refused_in_these_words(cloud: Cloud) -> None:
    await measure(cloud, UBUNTU, 500)
    answer = await cloud.post(SERVERS, {"name": "web", **TINY, "os_id": UBUNTU})
    assert answer.json()["plan_id"][0].endswith("No plan on offer has as much.")


async def test_a_rebuild_from_a_larger_system_is_refused_and_changes_nothing(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    before = await cloud.row(server_id)
    answer = await cloud.post(f"{SERVERS}{server_id}/rebuild/", {"os_id": UBUNTU})
    assert answer.status_code == 400
    assert answer.json() == {
        "os_id": [f"Ubuntu 22.04 LTS needs a disk of 3 GB, and the plan Nano VPS has 2. {SMALLEST}"]
    }
    assert await cloud.row(server_id) == before


@pytest.mark.parametrize("field", ["plan_id", "plan"])
async def test_a_resize_to_a_plan_on_which_the_system_does_not_fit_is_refused(cloud: Cloud, field: str) -> None:
    await cloud.offer(5, storage_gb=3)
    server_id = await cloud.have_server()
    await measure(cloud, TINY["os_id"], 4)  # type: ignore[arg-type]
    plans = (await cloud.get("/api/v1/plans/")).json()["results"]
    wanted = next(plan["id" if field == "plan_id" else "uuid"] for plan in plans if plan["id"] == 5)
    answer = await cloud.post(f"{SERVERS}{server_id}/resize/", {field: wanted})
    assert answer.status_code == 400
    assert answer.json() == {field: [f"Tiny Linux needs a disk of 4 GB, and the plan Plan 5 has 3. {SMALLEST}"]}
    assert (await cloud.post(f"{SERVERS}{server_id}/resize/", {"plan_id": STARTER})).status_code == 200


async def test_an_image_that_turns_out_to_be_too_large_gives_no_more_than_is_paid_for(cloud: Cloud) -> None:
    await cloud.compose(Images(2 * GIB + 1))
    server_id = await cloud.create()
    await cloud.settle()
    detail = (await cloud.get(f"{SERVERS}{server_id}/")).json()
    assert detail["status"] == "error"
    assert "Tiny Linux needs a disk of 3 GB, and the server's plan has 2." in str(detail)
    assert not (await cloud.hypervisor.volumes()).disks
    assert (await sizes(cloud))[1] == 3  # and the next one is refused at once
    assert (await cloud.post(SERVERS, {"name": "next", **TINY})).status_code == 400


async def test_a_rebuild_from_an_image_that_turns_out_to_be_too_large_leaves_the_disk(cloud: Cloud) -> None:
    server_id = await cloud.have_server()
    disks = (await cloud.hypervisor.volumes()).disks
    await cloud.compose(Images(2 * GIB + 1))
    assert (await cloud.post(f"{SERVERS}{server_id}/rebuild/", {"os_id": DEBIAN})).status_code == 200
    await cloud.work()
    operation = (await cloud.operations(server_id))[-1]
    assert (operation["command"], operation["status"]) == ("rebuild", "failed")
    assert "Debian 12 needs a disk of 3 GB" in operation["error"]
    assert (await cloud.hypervisor.volumes()).disks == disks
    assert (await cloud.row(server_id)).os_id == TINY["os_id"]


async def test_an_image_corrects_the_catalogue_and_the_file_does_not_undo_it(cloud: Cloud) -> None:
    await cloud.compose(Images(1 * GIB))
    server_id = await cloud.create(os_id=DEBIAN)
    await cloud.settle()
    assert await cloud.status(server_id) == "active"
    assert (await sizes(cloud))[DEBIAN] == 1
    await cloud.offer(5, storage_gb=3)  # applies the file again
    assert (await sizes(cloud))[DEBIAN] == 1
    larger = [
        msgspec.structs.replace(system, min_disk_gb=7) if system.id in (DEBIAN, UBUNTU) else system
        for system in cloud.offered.operating_systems
    ]
    async with cloud.writing() as ctx:
        await catalog.apply(ctx, msgspec.structs.replace(cloud.offered, operating_systems=larger))
    assert await sizes(cloud) == {1: 1, DEBIAN: 1, UBUNTU: 7}  # a system without an image has what the file says


async def test_images_of_an_older_vpsd_are_measured_when_it_starts(cloud: Cloud, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "images")
    for slug, size_bytes in (("debian-12", 3 * GIB), ("ubuntu-22.04", 4 * GIB)):
        await store.import_file(slug, bios_disk(tmp_path / slug, size_bytes), lambda _fraction, _text: None)
    await measure(cloud, UBUNTU, 3)  # of a newer image, elsewhere
    async with cloud.writing() as ctx:
        await measure_images(ctx, store)
    assert await sizes(cloud) == {1: 1, DEBIAN: 3, UBUNTU: 3}


async def test_a_server_whose_disk_is_larger_than_its_plan_gets_its_own_backup_back(cloud: Cloud) -> None:
    """Earlier versions of vpsd gave Ubuntu on a Nano more than its plan."""
    server_id = await cloud.have_server()
    await cloud.hypervisor.grow_disk(cloud.guest(server_id), await cloud.disk(server_id), 3 * GIB)
    backup = await cloud.have_copy(server_id)
    assert (await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")).status_code == 200
    await cloud.settle()
    assert await cloud.status(server_id) == "active"
    assert cloud.hypervisor.disk_bytes(await cloud.disk(server_id)) == 3 * GIB
    order = {"name": "new", "plan_id": TINY["plan_id"], "location": "us-west", "backup_id": backup["id"]}
    answer = await cloud.post(SERVERS, order)
    assert answer.json() == {"plan_id": [f"The backup needs a disk of 3 GB, and the plan Nano VPS has 2. {SMALLEST}"]}


async def test_firmware_goes_with_the_disk_to_backups_new_servers_restores_and_rebuilds(cloud: Cloud) -> None:
    await cloud.compose(Images(GIB, "uefi"))
    server_id = await cloud.have_server()
    guest = cloud.guest(server_id)
    assert cloud.hypervisor.spec(guest).firmware == "uefi"
    backup = await cloud.have_copy(server_id)
    order = {"name": "new", "plan_id": TINY["plan_id"], "location": "us-west", "backup_id": backup["id"]}
    copy_id: int = (await cloud.post(SERVERS, order)).json()["id"]
    await cloud.settle()
    assert cloud.hypervisor.spec(cloud.guest(copy_id)).firmware == "uefi"

    await cloud.compose(Images(GIB + 1))
    await cloud.post(f"{SERVERS}{server_id}/rebuild/", {"os_id": DEBIAN})
    await cloud.settle()
    assert cloud.hypervisor.spec(guest).firmware is None

    cloud.hypervisor.never_boots = True
    await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")
    await cloud.work()
    assert (await cloud.row(server_id)).firmware is None  # rolled back
    cloud.hypervisor.never_boots = False
    await cloud.force_status(server_id, Status.STOPPED)
    await cloud.post(f"/api/v1/backups/{backup['id']}/restore/")
    await cloud.settle()
    assert cloud.hypervisor.spec(guest).firmware == "uefi"


async def test_a_restore_of_an_older_vpsd_goes_back_to_bios(cloud: Cloud) -> None:
    old = b'{"disk": 0, "os_id": 1, "base": "tiny-1", "kernel_cmdline": null}'
    server = msgspec.structs.replace(await cloud.row(await cloud.have_server()), previous_boot=old.decode())
    assert server.previous_boot_source is not None
    assert server.previous_boot_source.firmware is None
