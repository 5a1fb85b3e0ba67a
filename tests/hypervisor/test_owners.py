"""Whom a host obeys: what every driver keeps, so that nobody changes what is another's, nor what others took since."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import libvirt
import msgspec
import pytest

from tests.hypervisor.rigs import DISK_BYTES, INSTANCE, NAME, RealRig, Rig, RootWithoutLibvirt, copy, power, prepare
from vpsd.hypervisor.libvirt import daemon
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor
from vpsd.hypervisor.names import disk_generation, disk_name
from vpsd.hypervisor.owner import NameTaken, Owner, TakenOver
from vpsd.hypervisor.protocol import Hypervisor, PowerState


def _changes(host: Hypervisor, rig: Rig) -> dict[str, Callable[[], Awaitable[object]]]:
    """Everything that may be asked to change of a guest that is there."""
    return {
        "take": lambda: host.take(NAME),
        "grow_disk": lambda: host.grow_disk(NAME, NAME, 2 * DISK_BYTES),
        "export_disk": lambda: host.export_disk(NAME, "m-9", None),
        "drop_export": lambda: host.drop_export(NAME),
        "keep_checkpoint": lambda: host.keep_checkpoint(NAME, None),
        "write_seed": lambda: host.write_seed(NAME, b"another"),
        "define": lambda: host.define(msgspec.structs.replace(rig.spec, memory_mb=144)),
        "request_shutdown": lambda: host.request_shutdown(NAME),
        "power_off": lambda: host.power_off(NAME),
        "power_on": lambda: host.power_on(NAME),
        "remove": lambda: host.remove(NAME, [NAME]),
    }


async def _assert_untouched(rig: Rig) -> None:
    host = rig.hypervisor
    assert await power(rig) is PowerState.RUNNING
    volumes = await host.volumes()
    for found in (volumes.disks, volumes.seeds, volumes.exports):
        assert found == {NAME}
    assert (rig.read_seed(), rig.disk_bytes()) == (rig.seed, DISK_BYTES)


async def test_what_an_earlier_owner_asks_comes_too_late(rig: Rig) -> None:
    first, second = (rig.hypervisor.held_by(Owner(rig.spec.uuid, term)) for term in ("7.1", "7.2"))
    await prepare(rig)  # by nobody, as an older vpsd did
    await first.take(NAME)
    await first.power_on(NAME)
    await copy(rig, "m-1", None)
    await second.take(NAME)
    for call, ask in _changes(first, rig).items():
        if call != "take":
            with pytest.raises(TakenOver):
                await ask()
    await _assert_untouched(rig)
    await second.define(msgspec.structs.replace(rig.spec, memory_mb=144))
    await second.power_off(NAME)
    await second.power_on(NAME)
    with pytest.raises(TakenOver):
        await first.power_off(NAME)
    await second.remove(NAME, [])
    await second.define(rig.spec)
    with pytest.raises(TakenOver):
        await first.remove(NAME, [NAME])
    assert await power(rig) is not None


async def test_who_comes_later_need_not_mark_a_guest_that_hangs_and_keeps_out_who_came_before(rig: Rig) -> None:
    first, second, of_a_copy = (rig.hypervisor.held_by(Owner(rig.spec.uuid, term)) for term in ("9.9", "10.1", "5.1"))
    await prepare(rig)
    await first.take(NAME)
    await first.power_on(NAME)
    await second.power_off(NAME)  # nobody took the guest since
    await second.take(NAME)
    with pytest.raises(TakenOver):
        await first.power_on(NAME)
    await of_a_copy.take(NAME)  # an older copy of the database was put back, whose operations have earlier numbers
    await of_a_copy.power_on(NAME)
    assert await power(rig) is PowerState.RUNNING


@pytest.mark.guest
async def test_a_guest_whose_qemu_hangs_is_powered_off_and_removed(real: RealRig) -> None:
    first, second = (real.hypervisor.held_by(Owner(real.spec.uuid, term)) for term in ("7.1", "8.1"))
    await prepare(real)
    await first.take(NAME)
    await first.power_on(NAME)
    os.kill(real.qemu_pid(), signal.SIGSTOP)
    sampling = asyncio.create_task(real.hypervisor.stats(NAME))  # it holds the domain's job until QEMU answers
    host = libvirt.open(daemon.uri(real.data))
    while host.lookupByName(NAME).controlInfo()[0] == libvirt.VIR_DOMAIN_CONTROL_OK:
        await asyncio.sleep(0.01)
    host.close()
    assert not sampling.done()
    await second.remove(NAME, [NAME])
    assert await real.hypervisor.guest(NAME) is None
    assert not (await real.hypervisor.volumes()).disks
    await asyncio.gather(sampling, return_exceptions=True)


async def test_who_has_no_time_left_changes_nothing(rig: Rig) -> None:
    def over() -> None:
        raise TakenOver

    late = rig.hypervisor.held_by(Owner(rig.spec.uuid, check=over))
    await prepare(rig)
    await rig.hypervisor.power_on(NAME)
    await copy(rig, "m-1", None)

    async def content() -> AsyncIterator[bytes]:
        yield bytes(1 << 20)

    changes: dict[str, Callable[[], Awaitable[object]]] = {
        **_changes(late, rig),
        "ensure_disk": lambda: late.ensure_disk(f"{NAME}.9", rig.image.key, DISK_BYTES),
        "write_disk": lambda: late.write_disk(f"{NAME}.9", DISK_BYTES, 1 << 20, [0], content()),
        "delete_disk": lambda: late.delete_disk(NAME),
        "resume": lambda: late.resume(NAME),
        "ensure_thawed": lambda: late.ensure_thawed(NAME),
        "run_in_guest": lambda: late.run_in_guest(NAME, ["/bin/true"]),
    }
    for ask in changes.values():
        with pytest.raises(TakenOver):
            await ask()
    await _assert_untouched(rig)


async def test_the_guest_of_another_server_is_neither_changed_nor_removed(rig: Rig) -> None:
    uuid = "11111111-7a57-4a0c-9f0c-6a1b6d2e9f11"
    other = rig.hypervisor.held_by(Owner(uuid, "8.1"))
    await prepare(rig)
    await rig.hypervisor.power_on(NAME)
    await copy(rig, "m-1", None)
    assert await other.guest(NAME) is None
    refused: list[Callable[[], Awaitable[object]]] = [
        lambda: other.define(msgspec.structs.replace(rig.spec, uuid=uuid)),
        lambda: other.write_seed(NAME, b"another"),
        lambda: other.power_on(NAME),
        lambda: other.export_disk(NAME, "m-9", None),
        lambda: other.grow_disk(NAME, NAME, 2 * DISK_BYTES),
    ]
    for ask in refused:
        with pytest.raises(NameTaken):
            await ask()
    await other.take(NAME)
    await other.power_off(NAME)
    await other.drop_export(NAME)
    await other.keep_checkpoint(NAME, None)
    await other.remove(NAME, [f"{NAME}.3"])
    await _assert_untouched(rig)
    assert (await copy(rig, "m-2", "m-1")).since_checkpoint == "m-1"


async def test_only_the_disks_go_that_are_named(rig: Rig) -> None:
    host = rig.hypervisor
    await prepare(rig)
    names = [disk_name(NAME, disk_generation(rig.spec.uuid, operation)) for operation in ("0000000a", "0000000c")]
    for name in names:
        await host.ensure_disk(name, rig.image.key, DISK_BYTES)
    assert (await host.volumes()).disks == {NAME, *names}
    await host.remove(NAME, [NAME, names[0]])
    volumes = await host.volumes()
    assert volumes.disks == {names[1]}
    assert not volumes.seeds
    assert await host.guest(NAME) is None


class Gate:
    """Holds a call of an owner's in its thread, at one of the moments in which it asks whether it still may."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._is_over = False
        self.reached, self.opened = threading.Event(), threading.Event()

    def check(self) -> None:
        self._number -= 1
        if self._number == 0:
            self.reached.set()
            assert self.opened.wait(60)
            self._is_over = True
        if self._is_over:
            raise TakenOver


@pytest.mark.guest
async def test_a_removal_that_is_held_anywhere_does_not_reach_what_others_have_made_since(real: RealRig) -> None:
    other = LibvirtHypervisor(INSTANCE, real.data, machine=RootWithoutLibvirt())
    new = disk_name(NAME, disk_generation(real.spec.uuid, "0000000b"))
    spec = msgspec.structs.replace(real.spec, disk=new)
    await prepare(real)
    number, is_over = 0, False
    while not is_over:
        number += 1
        await real.hypervisor.ensure_disk(NAME, real.image.key, DISK_BYTES)
        gate = Gate(number)
        first = real.hypervisor.held_by(Owner(real.spec.uuid, f"7.{number}", gate.check))
        second = other.held_by(Owner(real.spec.uuid, f"8.{number}"))
        await real.hypervisor.held_by(Owner(real.spec.uuid, f"7.{number}")).take(NAME)
        removal = asyncio.create_task(first.remove(NAME, [NAME]))
        while not (gate.reached.is_set() or removal.done()):
            await asyncio.sleep(0.01)
        is_over = removal.done()
        await second.take(NAME)
        await second.remove(NAME, [NAME])
        await second.ensure_disk(new, real.image.key, DISK_BYTES)
        await second.write_seed(NAME, real.seed)
        await second.define(spec)
        await second.power_on(NAME)
        gate.opened.set()
        if not is_over:
            with pytest.raises(TakenOver):
                await removal
        assert await power(real) is PowerState.RUNNING, number
        volumes = await other.volumes()
        for found in (volumes.disks - {NAME}, volumes.seeds, volumes.logs):
            assert found, number
    assert number > 5
    await other.close()
