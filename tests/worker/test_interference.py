"""Somebody meddles with a guest by hand, at any moment of what is done with its server: nothing stays locked."""

import contextlib
from collections.abc import Awaitable, Callable

import pytest

from tests.cloud import Cloud
from tests.worker.told import sample
from vpsd.audit import Audit
from vpsd.errors import Unusable
from vpsd.hypervisor.protocol import PowerState
from vpsd.lifecycle import AT_REST, Status
from vpsd.operations import service as operations

Meddle = Callable[[Cloud, str], None]
Ask = Callable[[Cloud, int], Awaitable[None]]


def _destroy(cloud: Cloud, name: str) -> None:
    cloud.hypervisor.happens(name, PowerState.OFF)


def _suspend(cloud: Cloud, name: str) -> None:
    cloud.hypervisor.happens(name, PowerState.PAUSED)


def _undefine(cloud: Cloud, name: str) -> None:
    cloud.hypervisor.vanishes(name)


async def _back_up(cloud: Cloud, server: int) -> None:
    assert (await cloud.post(f"/api/v1/servers/{server}/backup/")).status_code == 201


async def _resize(cloud: Cloud, server: int) -> None:
    assert (await cloud.post(f"/api/v1/servers/{server}/resize/", {"plan_id": 3})).status_code == 200


async def _restore(cloud: Cloud, server: int) -> None:
    found = (await cloud.get(f"/api/v1/backups/?server_id={server}")).json()["results"]
    assert (await cloud.post(f"/api/v1/backups/{found[-1]['id']}/restore/")).status_code == 200


ASKS: tuple[Ask, ...] = (_back_up, _resize, _restore)
MEDDLES: tuple[Meddle, ...] = (_destroy, _suspend, _undefine)


async def _calls_of(cloud: Cloud, ask: Ask) -> list[str]:
    """The calls of the host that a command makes when nobody meddles."""
    server = await _have_server_with_copy(cloud)
    await ask(cloud, server)
    before = len(cloud.hypervisor.calls)
    await cloud.work()
    calls = cloud.hypervisor.calls[before:]
    await _delete(cloud, server)
    return calls


async def _delete(cloud: Cloud, server: int) -> None:
    assert (await cloud.ask("DELETE", f"/api/v1/servers/{server}/")).status_code == 204
    await cloud.settle()
    assert not await cloud.hypervisor.guests()
    assert await Audit(cloud.runtime).run() == []


async def _have_server_with_copy(cloud: Cloud) -> int:
    server = await cloud.have_server()
    await cloud.have_copy(server)
    return server


async def _meddle(cloud: Cloud, ask: Ask, meddle: Meddle, moment: int) -> None:
    """Have somebody meddle before that call, and see that everything is well in the end."""
    server = await _have_server_with_copy(cloud)
    await ask(cloud, server)
    name, left = cloud.guest(server), moment

    def strike(_: str, name: str = name) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            cloud.hypervisor.before_call = None
            with contextlib.suppress(Unusable):  # it is not defined at this moment
                meddle(cloud, name)

    cloud.hypervisor.before_call = strike
    await cloud.settle()
    await cloud.thaw_checker().look()
    assert left < 0
    where = f"{meddle.__name__} before call {moment}"
    row = await cloud.row(server)
    assert row.status in AT_REST, where
    assert row.unthawed_backup_id is None, where
    async with cloud.reading() as ctx:
        assert await operations.open_operation(ctx, server) is None, where
    assert await Audit(cloud.runtime).run() == [], where
    if row.status != Status.ACTIVE:
        assert (await cloud.post(f"/api/v1/servers/{server}/start/")).status_code == 200, where
        await cloud.settle()
    assert await cloud.status(server) == "active", where
    assert (await cloud.have_copy(server))["consistent"], where
    await _delete(cloud, server)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("meddle", MEDDLES)
@pytest.mark.parametrize("ask", ASKS)
async def test_a_guest_that_is_meddled_with_at_any_step_leaves_nothing_locked(
    cloud: Cloud, ask: Ask, meddle: Meddle
) -> None:
    for moment in range(len(await _calls_of(cloud, ask))):
        await _meddle(cloud, ask, meddle, moment)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("meddle", MEDDLES)
async def test_nor_does_one_on_postgresql_before_any_kind_of_call(cloud: Cloud, meddle: Meddle) -> None:
    places = sample({ask: await _calls_of(cloud, ask) for ask in ASKS})
    assert {ask for ask, _ in places} == set(ASKS)
    for ask, moment in places[MEDDLES.index(meddle) :: len(MEDDLES)]:
        await _meddle(cloud, ask, meddle, moment)
