"""What every driver of the protocol keeps, the simulated host and the real one."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.hypervisor.rigs import (
    DISK_BYTES,
    INSTANCE,
    NAME,
    Picture,
    Rig,
    boot,
    boot_from,
    copy,
    power,
    prepare,
    shut_down,
    silent,
    until,
    until_power,
)
from vpsd.core.clock import SystemClock
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.clock import difference
from vpsd.hypervisor.protocol import BootSigns, GuestStats, PortsTaken, PowerState, guest_name

STRANGER = guest_name(INSTANCE, 404)


async def test_a_guest_goes_its_way(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)
    assert not await host.is_up(NAME)
    await boot(rig)
    guest = (await host.guests())[NAME]
    assert (guest.uuid, guest.power) == (rig.spec.uuid, PowerState.RUNNING)
    assert tuple(guest.forwards) == tuple(rig.spec.forwards)
    await shut_down(rig)
    assert not await host.is_up(NAME)
    await host.power_on(NAME)
    await host.power_off(NAME)
    assert await power(rig) is PowerState.OFF
    await host.remove(NAME)
    assert await host.guest(NAME) is None
    assert NAME not in await host.guests()
    volumes = await host.volumes()
    assert NAME not in volumes.disks | volumes.seeds


async def test_a_host_tells_what_its_clock_says_and_keeps_nothing_of_that(rig: Rig) -> None:
    found = await difference(rig.hypervisor, SystemClock())
    assert found is not None
    assert abs(found.seconds) <= found.give_or_take_seconds + 0.1  # a file system's clock ticks some times in a second
    volumes = await rig.hypervisor.volumes()
    assert not volumes.unknown


async def test_the_signs_of_a_boot_tell_life_from_its_absence(rig: Rig) -> None:
    host = rig.hypervisor
    assert await host.boot_signs(STRANGER) == BootSigns()
    await prepare(rig)
    assert await host.boot_signs(NAME) == BootSigns()
    await boot(rig)

    async def is_up() -> bool:
        return (await host.boot_signs(NAME)).is_up

    await until(is_up)
    signs = await host.boot_signs(NAME)
    assert (signs.stuck, signs.is_idle) == (None, False)
    await host.remove(NAME)
    assert NAME not in (await host.volumes()).logs


async def test_every_call_may_be_repeated(rig: Rig) -> None:
    host = rig.hypervisor
    for _ in range(2):
        await prepare(rig)
    for _ in range(2):
        await host.power_on(NAME)
    assert await power(rig) is PowerState.RUNNING
    await prepare(rig)
    assert await power(rig) is PowerState.RUNNING
    for _ in range(2):
        await host.power_off(NAME)
    await host.request_shutdown(NAME)
    assert await power(rig) is PowerState.OFF
    for _ in range(2):
        await host.remove(NAME)
    for _ in range(2):
        await host.delete_base(rig.image.key)
    assert rig.image.key not in (await host.volumes()).bases


async def test_only_a_guest_that_the_host_has_paused_is_resumed(rig: Rig) -> None:
    host = rig.hypervisor
    await host.resume(STRANGER)
    await prepare(rig)
    await host.resume(NAME)
    assert await power(rig) is not PowerState.RUNNING
    await host.power_on(NAME)
    guest = await host.guest(NAME)
    assert guest is not None
    assert guest.paused_by is None
    await host.resume(NAME)
    assert await power(rig) is PowerState.RUNNING
    await host.power_off(NAME)
    await host.resume(NAME)
    assert await power(rig) is PowerState.OFF


async def test_what_is_free_in_the_pool_is_told(rig: Rig) -> None:
    await prepare(rig)
    facts = await rig.hypervisor.facts()
    assert facts.storage_gb is not None
    assert facts.storage_free_mb is not None
    assert 0 < facts.storage_free_mb <= (facts.storage_gb + 1) * 1024


async def test_names_that_the_host_does_not_know(rig: Rig) -> None:
    host = rig.hypervisor
    assert await host.guest(STRANGER) is None
    assert not await host.is_up(STRANGER)
    assert await host.stats(STRANGER) == GuestStats()
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
        await host.grow_disk(NAME, NAME, wanted)
        assert rig.disk_bytes() == grown
    with pytest.raises(Unusable):
        await host.grow_disk(STRANGER, STRANGER, DISK_BYTES)


async def test_a_disk_is_never_smaller_than_what_it_stands_on(rig: Rig) -> None:
    host = rig.hypervisor
    await host.ensure_base(rig.image, silent)
    with pytest.raises(Unusable, match="is larger than the disk"):
        await host.ensure_disk(NAME, rig.image.key, rig.image.virtual_size_bytes - 1)
    assert NAME not in (await host.volumes()).disks
    await host.ensure_disk(NAME, rig.image.key, rig.image.virtual_size_bytes)
    assert rig.disk_bytes() == rig.image.virtual_size_bytes


async def test_a_base_stays_while_a_disk_stands_on_it(rig: Rig) -> None:
    await prepare(rig)
    with pytest.raises(Unusable, match="in use"):
        await rig.hypervisor.delete_base(rig.image.key)
    assert rig.image.key in (await rig.hypervisor.volumes()).bases


async def test_the_volumes_are_listed(rig: Rig) -> None:
    await prepare(rig)
    volumes = await rig.hypervisor.volumes()
    assert NAME in volumes.disks
    assert NAME in volumes.seeds
    assert rig.image.key in volumes.bases
    assert not volumes.unknown
    assert not volumes.unfinished


async def test_a_guest_whose_host_process_died_has_crashed(rig: Rig) -> None:
    await prepare(rig)
    await rig.hypervisor.power_on(NAME)
    rig.crash()
    await until_power(rig, PowerState.CRASHED)
    await rig.hypervisor.power_on(NAME)
    assert await power(rig) is PowerState.RUNNING


async def test_a_seed_is_replaced_while_the_guest_runs(rig: Rig) -> None:
    await prepare(rig)
    await rig.hypervisor.power_on(NAME)
    for content in (rig.seed[:-2] + b"zz", b"short"):
        await rig.hypervisor.write_seed(NAME, content)
        assert rig.read_seed() == content
    assert await power(rig) is PowerState.RUNNING


async def test_a_taken_port_has_an_error_of_its_own(rig: Rig) -> None:
    await prepare(rig)
    with rig.ports_taken(), pytest.raises(PortsTaken):
        await rig.hypervisor.power_on(NAME)
    await rig.hypervisor.power_on(NAME)
    assert await power(rig) is PowerState.RUNNING


async def test_a_progress_ends_at_one(rig: Rig) -> None:
    said: list[float] = []
    await rig.hypervisor.ensure_base(rig.image, lambda fraction, _: said.append(fraction))
    assert said == sorted(said)
    assert said[-1] == 1.0


async def test_copies_of_a_running_guest_make_disks_that_boot(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)
    await boot(rig)
    await rig.until_agent()
    rig.write_note(NAME, "one")
    whole = await copy(rig, "m-1", since=None)
    first = Picture()
    everything = await first.lay(host)
    rig.write_note(NAME, "two")
    changes = await copy(rig, "m-2", since="m-1")
    await host.keep_checkpoint(NAME, "m-2")
    second = Picture()
    second.chunks = {number: bytearray(chunk) for number, chunk in first.chunks.items()}
    changed = await second.lay(host)
    assert (whole.since_checkpoint, changes.since_checkpoint) == (None, "m-1")
    assert whole.frozen
    assert changes.frozen
    assert 0 < changed < everything
    assert (await host.volumes()).exports == {NAME}
    await host.drop_export(NAME)
    assert not (await host.volumes()).exports
    assert second.size_bytes == DISK_BYTES
    for picture, disk, note in ((second, f"{NAME}.8", "two"), (first, f"{NAME}.7", "one")):
        for _ in range(2):
            await picture.write(host, disk)
        await boot_from(rig, disk)
        assert rig.read_note(disk) == note
    assert (await host.volumes()).disks == {NAME, f"{NAME}.7", f"{NAME}.8"}
    await host.delete_disk(f"{NAME}.8")
    await host.delete_disk(f"{NAME}.8")
    await host.remove(NAME)
    assert not (await host.volumes()).disks


async def test_a_guest_is_frozen_for_a_copy_unless_it_is_not_to_be_and_writes_again(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)
    assert await host.ensure_thawed(NAME) is None
    await boot(rig)
    await rig.until_agent()
    assert await host.ensure_thawed(NAME) is True
    copied = await copy(rig, "m-1", None)
    assert (copied.frozen, copied.freeze_asked) == (True, True)
    assert copied.detail.startswith("Frozen for ")
    assert copied.detail.endswith(" ms: /.")
    assert await host.ensure_thawed(NAME) is True
    copied = await copy(rig, "m-2", "m-1", freeze=False)
    assert (copied.frozen, copied.frozen_ms, copied.freeze_asked) == (False, 0, False)
    await host.power_off(NAME)
    assert await host.ensure_thawed(NAME) is None
    copied = await copy(rig, "m-3", "m-2")
    assert (copied.frozen, copied.freeze_asked) == (True, False)
    assert copied.detail == "The guest was off: nothing was being written."


async def test_a_copy_of_a_guest_that_is_off_leaves_it_off(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)
    await boot(rig)
    rig.write_note(NAME, "one")
    await shut_down(rig)
    copying = await copy(rig, "m-1", since=None)
    assert copying.frozen
    assert await power(rig) is PowerState.PAUSED
    assert not await host.is_up(NAME)
    await host.power_off(NAME)
    assert await power(rig) is PowerState.OFF
    await (picture := Picture()).lay(host)
    assert (await copy(rig, "m-2", since="m-1")).since_checkpoint == "m-1"
    await host.power_off(NAME)
    await picture.lay(host)
    await picture.write(host, f"{NAME}.3")
    await boot_from(rig, f"{NAME}.3")
    assert rig.read_note(f"{NAME}.3") == "one"


async def test_a_copy_begins_anew_as_often_as_wanted_and_misses_nothing(rig: Rig) -> None:
    host, picture = rig.hypervisor, Picture()
    await prepare(rig)
    await boot(rig)
    assert (await copy(rig, "m-1", None)).since_checkpoint is None
    await picture.lay(host)
    rig.write_note(NAME, "one")
    await host.export_disk(NAME, "m-2", "m-1")
    await host.export_disk(NAME, "m-2", "m-1")  # the same again, perhaps while the first is under way
    await host.drop_export(NAME)
    await host.drop_export(NAME)
    with pytest.raises(Unusable):
        await host.block_map(NAME)
    assert (await copy(rig, "m-3", "m-1")).since_checkpoint == "m-1"  # the one before came to nothing
    await picture.lay(host)
    assert (await copy(rig, "m-4", "m-0")).since_checkpoint is None  # a checkpoint that the host does not know
    assert await power(rig) is PowerState.RUNNING
    await picture.write(host, f"{NAME}.6")
    await boot_from(rig, f"{NAME}.6")
    assert rig.read_note(f"{NAME}.6") == "one"


@pytest.mark.parametrize("runs", [False, True])
async def test_a_copy_of_a_disk_that_grew_holds_everything(rig: Rig, runs: bool) -> None:
    host = rig.hypervisor
    await prepare(rig)
    await boot(rig)
    await copy(rig, "m-1", None)
    if not runs:
        await host.power_off(NAME)
    await host.grow_disk(NAME, NAME, 2 * DISK_BYTES)
    assert (await copy(rig, "m-2", "m-1")).since_checkpoint is None
    assert (await host.block_map(NAME)).size_bytes == 2 * DISK_BYTES
    assert (await copy(rig, "m-3", "m-2")).since_checkpoint == "m-2"


async def test_a_copy_after_a_crash_misses_nothing(rig: Rig) -> None:
    """What was written before QEMU died is in no record that can be trusted."""
    host = rig.hypervisor
    await prepare(rig)
    await boot(rig)
    await copy(rig, "m-1", None)
    picture = Picture()
    await picture.lay(host)
    rig.write_note(NAME, "one")
    rig.crash()
    await until_power(rig, PowerState.CRASHED)
    with pytest.raises(Unavailable):
        await host.export_progress(NAME)
    await boot(rig)
    await copy(rig, "m-2", "m-1")
    await picture.lay(host)
    await host.keep_checkpoint(NAME, "m-2")
    await picture.write(host, f"{NAME}.5")
    await boot_from(rig, f"{NAME}.5")
    assert rig.read_note(f"{NAME}.5") == "one"


async def test_a_disk_grows_although_its_guest_has_died_with_a_checkpoint_on_it(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)
    await boot(rig)
    await copy(rig, "m-1", None)
    rig.crash()
    await until_power(rig, PowerState.CRASHED)
    await host.grow_disk(NAME, NAME, 2 * DISK_BYTES)
    assert rig.disk_bytes() == 2 * DISK_BYTES
    assert await power(rig) is not PowerState.RUNNING
    await boot(rig)
    assert (await copy(rig, "m-2", "m-1")).since_checkpoint is None


async def test_a_disk_that_was_not_written_to_its_end_is_none(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)

    async def breaks() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)
        raise Unavailable("the line is cut")

    with pytest.raises(Unavailable):
        await host.write_disk(f"{NAME}.2", DISK_BYTES, 1 << 20, [0, 1], breaks())

    async def whole() -> AsyncIterator[bytes]:
        for letter in (b"a", b"b"):
            yield letter * (1 << 20)

    await host.write_disk(f"{NAME}.2", DISK_BYTES, 1 << 20, [0, 1], whole())
    await host.define(msgspec.structs.replace(rig.spec, disk=f"{NAME}.2"))
    await host.power_on(NAME)  # QEMU takes it for a disk
    await copy(rig, "m-1", None)
    assert await host.read_export(NAME, (1 << 20) - 1, 2) == b"ab"


async def test_copies_of_guests_that_the_host_does_not_know(rig: Rig) -> None:
    host = rig.hypervisor
    with pytest.raises(Unusable):
        await host.export_disk(STRANGER, "m-1", None)
    with pytest.raises(Unavailable):
        await host.export_progress(STRANGER)
    assert await host.ensure_thawed(STRANGER) is None
    await host.drop_export(STRANGER)
    await host.keep_checkpoint(STRANGER, None)
    await host.delete_disk(STRANGER)
