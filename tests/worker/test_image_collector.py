"""Images on hosts that nothing needs any more go; none goes that anything stands on, or is about to."""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import pytest

from tests.api.tables import change
from tests.cloud import Cloud
from tests.hosts.test_shared_pools import only, server_at
from tests.hosts.test_shared_pools import pair as pair
from vpsd.backups import needed_images
from vpsd.catalog.models import OperatingSystem
from vpsd.core.context import Ctx
from vpsd.hosts import base_images
from vpsd.hosts.models import Host
from vpsd.hypervisor.protocol import Image
from vpsd.hypervisor.simulator import Simulator
from vpsd.servers.models import BootSource, servers
from vpsd.worker import image_collector
from vpsd.worker.image_collector import ImageCollector

DAY = 24 * 3600.0


def old(slug: str = "tiny") -> str:
    """The key of an earlier version of an image."""
    return f"{slug}-0123456789ab"


async def have_image(host: Simulator, key: str) -> None:
    await host.ensure_base(Image(key, Path("simulated"), 1 << 20), lambda _part, _text: None)


async def bases(host: Simulator) -> Collection[str]:
    return (await host.volumes()).bases


async def slug(cloud: Cloud, server: int) -> str:
    """What the images of a server's system are called."""
    base = (await cloud.row(server)).base
    assert base is not None
    return base.rpartition("-")[0]


async def collect(cloud: Cloud, days: float = 4, host: Host | None = None) -> None:
    """A look now, and another one some days later."""
    collector = ImageCollector(cloud.runtime if host is None else cloud.runtime.at(host))
    await collector.collect()
    cloud.clock.advance(days * DAY)
    await collector.collect()


async def test_an_image_that_nothing_needs_goes_after_three_days_and_not_before(cloud: Cloud) -> None:
    server = await cloud.have_server()
    current = (await cloud.row(server)).base
    await cloud.ask("DELETE", f"/api/v1/servers/{server}/")
    await cloud.work()
    await have_image(cloud.hypervisor, old())
    await collect(cloud, days=2.9)
    assert await bases(cloud.hypervisor) == {old(), current}
    await collect(cloud, days=0.2)
    assert await bases(cloud.hypervisor) == {current}  # which the next server gets
    async with cloud.reading() as ctx:
        assert not await base_images.is_claimed(ctx, cloud.runtime.place, old())


async def test_with_zero_hours_images_stay(cloud: Cloud) -> None:
    cloud.set(image_keep_hours=0)
    await have_image(cloud.hypervisor, old())
    await collect(cloud, days=400)
    assert await bases(cloud.hypervisor) == {old()}


async def test_an_image_whose_system_is_not_offered_any_more_goes(cloud: Cloud) -> None:
    await have_image(cloud.hypervisor, "plan9-0123456789ab")
    await collect(cloud)
    assert not await bases(cloud.hypervisor)


async def test_the_time_begins_anew_where_an_image_was_needed_meanwhile(cloud: Cloud) -> None:
    await have_image(cloud.hypervisor, old())
    server = await cloud.have_server()
    await collect(cloud, days=2)
    async with cloud.writing() as ctx:
        await change(ctx.tx, servers, server, base=old())
    await collect(cloud, days=2)
    async with cloud.writing() as ctx:
        await change(ctx.tx, servers, server, base=None)
    await collect(cloud, days=2)
    assert old() in await bases(cloud.hypervisor)


@pytest.mark.parametrize("which", ["base", "previous"])
async def test_an_image_that_a_server_boots_from_or_goes_back_to_stays(cloud: Cloud, which: str) -> None:
    await have_image(cloud.hypervisor, old())
    server = await cloud.have_server()
    before = BootSource(1, 1, old(), None)
    async with cloud.writing() as ctx:
        values = {"base": old()} if which == "base" else {"previous_boot": _json(before)}
        await change(ctx.tx, servers, server, **values)
    await collect(cloud)
    assert old() in await bases(cloud.hypervisor)


def _json(boot: BootSource) -> str:
    return msgspec.json.encode(boot).decode()


async def test_an_image_that_a_disk_stands_on_of_which_no_row_tells_stays(cloud: Cloud) -> None:
    await have_image(cloud.hypervisor, old())
    await cloud.hypervisor.ensure_disk(f"{cloud.guest(7)}.1", old(), 1 << 20)
    await collect(cloud)
    assert await bases(cloud.hypervisor) == {old()}
    assert "delete_base" in cloud.hypervisor.calls


async def test_what_an_open_operation_may_be_using_stays(cloud: Cloud) -> None:
    """It has found the image on the host, and its row does not say so yet."""
    server = await cloud.have_server()
    await have_image(cloud.hypervisor, key := old(await slug(cloud, server)))
    await cloud.create("another")
    await collect(cloud)
    assert key in await bases(cloud.hypervisor)
    await cloud.work()
    await collect(cloud)
    assert key not in await bases(cloud.hypervisor)


async def test_what_is_begun_between_the_look_and_the_claim_is_seen(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await cloud.have_server()
    await have_image(cloud.hypervisor, key := old(await slug(cloud, server)))
    look, looks = needed_images.needed, 0

    async def look_and_begin(
        ctx: Ctx, current: Callable[[OperatingSystem], str | None], keys: Collection[str], *where: object
    ) -> set[str]:
        nonlocal looks
        found = await look(ctx, current, keys, *where)  # type: ignore[arg-type]
        looks += 1
        if looks == 2:
            await cloud.create("another")
        return found

    monkeypatch.setattr(image_collector, "needed", look_and_begin)
    await collect(cloud)
    assert looks == 3
    assert key in await bases(cloud.hypervisor)


async def test_who_needs_an_image_that_is_just_being_removed_waits_and_sends_it_anew(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await cloud.have_server()
    key = (await cloud.row(first)).base
    assert key is not None
    await cloud.ask("DELETE", f"/api/v1/servers/{first}/")
    await cloud.work()
    removing, go_on, looks = asyncio.Event(), asyncio.Event(), 0
    look = base_images.is_claimed

    async def hold(call: str) -> None:
        if call == "delete_base":
            removing.set()
            await go_on.wait()

    async def count(ctx: Ctx, place: str, image_key: str) -> bool:
        nonlocal looks
        looks += 1
        return await look(ctx, place, image_key)

    monkeypatch.setattr(type(cloud.runtime.images), "current", lambda *_: "another")
    cloud.hypervisor.in_call = hold
    collecting = asyncio.create_task(collect(cloud))
    await removing.wait()
    monkeypatch.undo()
    monkeypatch.setattr(base_images, "is_claimed", count)
    second = await cloud.create("second")
    with monkeypatch.context() as patch:
        patch.setattr(cloud.clock, "advance", lambda _: None)
        working = asyncio.create_task(cloud.runner().run_once())
        while looks < 4 and cloud.hypervisor.calls.count("ensure_disk") < 2:
            await asyncio.sleep(0)
        assert cloud.hypervisor.calls.count("ensure_disk") == 1  # the first server's
    go_on.set()
    await asyncio.gather(collecting, working)
    await cloud.work()
    assert await cloud.status(second) == "active"
    assert cloud.hypervisor.sent == [key, key]


async def test_who_was_stopped_while_it_removed_an_image_comes_too_late(cloud: Cloud) -> None:
    await have_image(cloud.hypervisor, old())

    async def stop(call: str) -> None:
        if call == "delete_base":
            cloud.clock.advance(120)

    cloud.hypervisor.before_call = stop
    await collect(cloud)
    assert await bases(cloud.hypervisor) == {old()}


async def test_of_a_shared_pool_one_host_collects_and_looks_at_the_servers_of_all(
    cloud: Cloud, pair: list[Host]
) -> None:
    server = await server_at(cloud, "two")
    await have_image(cloud.others["one"], key := old(await slug(cloud, server)))
    await have_image(cloud.others["one"], old("other"))
    async with cloud.writing() as ctx:
        await change(ctx.tx, servers, server, base=key)
    await collect(cloud, host=pair[1])
    assert {key, old("other")} < set(await bases(cloud.others["one"]))
    await collect(cloud, host=pair[0])
    assert key in await bases(cloud.others["one"])
    assert old("other") not in await bases(cloud.others["two"])


async def test_an_open_operation_at_another_host_of_the_pool_keeps_its_systems_images(
    cloud: Cloud, pair: list[Host]
) -> None:
    server = await server_at(cloud, "one")
    await have_image(cloud.others["one"], key := old(await slug(cloud, server)))
    await only(cloud, "two")
    await cloud.create("another")
    await collect(cloud, host=pair[0])
    assert key in await bases(cloud.others["one"])
