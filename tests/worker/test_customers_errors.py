"""What goes wrong on a host or a target is told to customers in plain words; the operator reads all of it."""

import logging
from typing import Any

import pytest

from tests.cloud import Cloud
from vpsd.backups.repository import Damaged, WrongKey
from vpsd.backups.targets import Missing, TargetFull, TargetNotThere
from vpsd.errors import Misconfigured, Unavailable, Unusable
from vpsd.hypervisor.protocol import NoSpace, PortsTaken
from vpsd.images.simulated import SimulatedImages
from vpsd.operations import history

SERVERS = "/api/v1/servers/"
# What a driver's text may hold: a path, an address of a host, a program, a URI, a bucket.
SECRET = (
    "internal error: qemu-img failed: Could not open '/srv/secret/pool/vpsd-1.qcow2': qemu+ssh://root@kvm7.internal"
    "/system, s3 acme-bucket"
)
PARTS = ("/tmp", "pytest", "/srv", "secret", "pool/", "kvm7", "internal error", "qemu", "acme", "s3 ", "VPSD_")
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the texts are the same on both
FAILURES = [Unavailable, Unusable, NoSpace, PortsTaken, Misconfigured, KeyError, OSError]
ON_TARGETS = [Unavailable, Unusable, TargetFull, Missing, TargetNotThere, Damaged, WrongKey, OSError]


async def seen_by_customers(cloud: Cloud, server: int) -> str:
    """All that the API says of a server and what belongs to it."""
    paths = (f"servers/{server}/", "servers/", f"servers/{server}/operations/", "account/events/", "backups/")
    answers = [await cloud.get(f"/api/v1/{path}") for path in (*paths, "snapshots/")]
    health = await cloud.get("/health", who=None)
    return "\n".join(answer.text for answer in [*answers, health])


async def check(cloud: Cloud, server: int, caplog: pytest.LogCaptureFixture, in_full: str = SECRET) -> None:
    """Customers are told nothing of it; log and row have it in full."""
    said = await seen_by_customers(cloud, server)
    assert [part for part in PARTS if part in said] == []
    async with cloud.reading() as ctx:
        causes = [one.cause for one in await history.latest(ctx, server) if one.cause]
    assert any(in_full in cause for cause in causes)
    assert any(in_full in record.getMessage() and "operation" in record.getMessage() for record in caplog.records)


def failing(kind: type[Exception], calls: tuple[str, ...] = ()) -> Any:
    def fail(call: str) -> None:
        if not calls or call in calls:
            raise kind(SECRET)

    return fail


@pytest.mark.parametrize("kind", FAILURES)
async def test_no_driver_tells_customers_what_is_the_operators(
    cloud: Cloud, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    server = await cloud.create()
    cloud.hypervisor.before_call = failing(kind, ("ensure_disk",))
    await cloud.work()
    await check(cloud, server, caplog)  # it is tried again
    await cloud.settle()
    assert await cloud.status(server) == "error"
    await check(cloud, server, caplog)


async def test_no_call_of_a_rebuild_or_a_backup_does(cloud: Cloud) -> None:
    server = await cloud.have_server()
    cloud.hypervisor.calls.clear()
    await cloud.post(f"{SERVERS}{server}/rebuild/", {"os_id": 3})
    await cloud.settle()
    await cloud.have_copy(server)
    calls = sorted(set(cloud.hypervisor.calls))
    assert {"ensure_disk", "power_on", "export_disk", "read_export"} <= set(calls)
    for call in calls:
        cloud.hypervisor.before_call = failing(Unusable, (call,))
        await cloud.post(f"{SERVERS}{server}/rebuild/", {"os_id": 3})
        await cloud.work()
        await cloud.post(f"{SERVERS}{server}/backup/")
        await cloud.work()
        cloud.hypervisor.before_call = None
        await cloud.settle()
        said = await seen_by_customers(cloud, server)
        assert [part for part in PARTS if part in said] == [], call


@pytest.mark.parametrize("kind", ON_TARGETS)
async def test_no_target_of_backups_does(cloud: Cloud, kind: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    server = await cloud.have_server()
    copy = await cloud.have_copy(server)
    cloud.target.before_call = failing(kind)
    made = await cloud.post(f"{SERVERS}{server}/backup/")
    assert made.status_code == 201
    await cloud.settle()
    in_full = str(cloud.target.folder) if kind is Missing else SECRET  # its mark is not there
    await check(cloud, server, caplog, in_full)
    assert (await cloud.post(f"/api/v1/backups/{copy['id']}/restore/")).status_code == 200
    await cloud.settle()
    await check(cloud, server, caplog, in_full)


async def test_no_build_or_download_of_an_image_does(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    class NoImages(SimulatedImages):
        async def ensure(self, *_: Any) -> Any:
            raise Unusable(SECRET)

    caplog.set_level(logging.WARNING)
    await cloud.compose(NoImages())
    server = await cloud.create()
    await cloud.settle()
    await check(cloud, server, caplog)
    assert "the operator can see why" in (await cloud.get(f"{SERVERS}{server}/")).json()["error"]
