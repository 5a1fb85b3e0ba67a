"""What every driver of the protocol keeps, the simulated host and the real one."""

import pytest

from tests.hypervisor.rigs import DISK_BYTES, INSTANCE, NAME, Rig, boot, power, prepare, shut_down, until_power
from vpsd.errors import Unusable
from vpsd.hypervisor.protocol import PortsTaken, Power, Usage, guest_name

STRANGER = guest_name(INSTANCE, 404)


async def test_a_guest_goes_its_way(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)
    assert not await host.is_up(NAME)
    await boot(rig)
    guest = (await host.guests())[NAME]
    assert (guest.uuid, guest.power) == (rig.spec.uuid, Power.RUNNING)
    assert tuple(guest.forwards) == tuple(rig.spec.forwards)
    await shut_down(rig)
    assert not await host.is_up(NAME)
    await host.power_on(NAME)
    await host.power_off(NAME)
    assert await power(rig) is Power.OFF
    await host.remove(NAME)
    assert await host.guest(NAME) is None
    assert NAME not in await host.guests()
    volumes = await host.volumes()
    assert NAME not in volumes.disks | volumes.seeds


async def test_every_call_may_be_repeated(rig: Rig) -> None:
    host = rig.hypervisor
    for _ in range(2):
        await prepare(rig)
    for _ in range(2):
        await host.power_on(NAME)
    assert await power(rig) is Power.RUNNING
    await prepare(rig)
    assert await power(rig) is Power.RUNNING
    for _ in range(2):
        await host.power_off(NAME)
    await host.request_shutdown(NAME)
    assert await power(rig) is Power.OFF
    for _ in range(2):
        await host.remove(NAME)
    for _ in range(2):
        await host.delete_base(rig.image.key)
    assert rig.image.key not in (await host.volumes()).bases


async def test_names_that_the_host_does_not_know(rig: Rig) -> None:
    host = rig.hypervisor
    assert await host.guest(STRANGER) is None
    assert not await host.is_up(STRANGER)
    assert await host.usage(STRANGER) == Usage()
    await host.power_off(STRANGER)
    await host.remove(STRANGER)
    await host.delete_base("nothing")
    with pytest.raises(Unusable):
        await host.power_on(STRANGER)
    with pytest.raises(Unusable):
        await host.request_shutdown(STRANGER)
    with pytest.raises(Unusable):
        await host.ensure_disk(STRANGER, "nothing", DISK_BYTES)


@pytest.mark.parametrize("runs", [False, True])
async def test_a_disk_grows_and_never_shrinks(rig: Rig, runs: bool) -> None:
    host = rig.hypervisor
    await prepare(rig)
    if runs:
        await host.power_on(NAME)
    for wanted, grown in ((2 * DISK_BYTES, 2 * DISK_BYTES), (2 * DISK_BYTES, 2 * DISK_BYTES), (1, 2 * DISK_BYTES)):
        await host.grow_disk(NAME, wanted)
        assert rig.disk_bytes() == grown
    with pytest.raises(Unusable):
        await host.grow_disk(STRANGER, DISK_BYTES)


async def test_a_base_stays_while_a_disk_stands_on_it(rig: Rig) -> None:
    await prepare(rig)
    with pytest.raises(Unusable, match="stand"):
        await rig.hypervisor.delete_base(rig.image.key)
    assert rig.image.key in (await rig.hypervisor.volumes()).bases


async def test_the_volumes_are_listed(rig: Rig) -> None:
    await prepare(rig)
    volumes = await rig.hypervisor.volumes()
    assert NAME in volumes.disks
    assert NAME in volumes.seeds
    assert rig.image.key in volumes.bases
    assert not volumes.strangers
    assert not volumes.unfinished


async def test_a_guest_whose_host_process_died_has_crashed(rig: Rig) -> None:
    await prepare(rig)
    await rig.hypervisor.power_on(NAME)
    rig.crash()
    await until_power(rig, Power.CRASHED)
    await rig.hypervisor.power_on(NAME)
    assert await power(rig) is Power.RUNNING


async def test_a_seed_is_replaced_while_the_guest_runs(rig: Rig) -> None:
    await prepare(rig)
    await rig.hypervisor.power_on(NAME)
    for content in (rig.seed[:-2] + b"zz", b"short"):
        await rig.hypervisor.write_seed(NAME, content)
        assert rig.read_seed() == content
    assert await power(rig) is Power.RUNNING


async def test_a_taken_port_has_an_error_of_its_own(rig: Rig) -> None:
    await prepare(rig)
    with rig.ports_taken(), pytest.raises(PortsTaken):
        await rig.hypervisor.power_on(NAME)
    await rig.hypervisor.power_on(NAME)
    assert await power(rig) is Power.RUNNING


async def test_a_progress_ends_at_one(rig: Rig) -> None:
    said: list[float] = []
    await rig.hypervisor.ensure_base(rig.image, lambda fraction, _: said.append(fraction))
    assert said == sorted(said)
    assert said[-1] == 1.0
