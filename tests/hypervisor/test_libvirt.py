"""What only real guests can show."""

import asyncio
import os
import re
import select
import signal
from collections.abc import Callable
from pathlib import Path

import libvirt
import msgspec
import pytest

from tests.hypervisor.rigs import (
    NAME,
    Picture,
    RealRig,
    boot,
    boot_from,
    copy,
    power,
    prepare,
    silent,
    until,
    until_power,
)
from vpsd.errors import Unavailable, Unusable
from vpsd.hypervisor.libvirt import daemon
from vpsd.hypervisor.libvirt.driver import LibvirtHypervisor
from vpsd.hypervisor.protocol import PowerState

pytestmark = pytest.mark.guest


async def test_a_restart_of_libvirtd_disturbs_no_guest(real: RealRig) -> None:
    await prepare(real)
    await boot(real)
    pid, boot_id = real.qemu_pid(), real.ssh("cat /proc/sys/kernel/random/boot_id").stdout
    daemon.stop_own_daemon(real.data)
    assert await power(real) is PowerState.RUNNING  # asks, and so starts the daemon again
    assert daemon.running_pid(real.data) is not None
    assert await real.hypervisor.is_up(NAME)
    assert (real.qemu_pid(), real.ssh("cat /proc/sys/kernel/random/boot_id").stdout) == (pid, boot_id)
    real.crash()
    await until_power(real, PowerState.CRASHED)


async def test_a_host_that_falls_silent_is_noticed_and_its_calls_end(real: RealRig) -> None:
    await real.hypervisor.guests()
    pid = daemon.running_pid(real.data)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="keepalive"):  # not because the call's own time is over
            await real.hypervisor.guests()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await real.hypervisor.guests() == {}


async def test_a_guest_whose_kernel_panics_says_so_on_its_serial_console(real: RealRig) -> None:
    real.spec = msgspec.structs.replace(real.spec, cmdline=f"{real.spec.cmdline} rdinit=/nothing init=/nothing panic=0")
    await prepare(real)
    await real.hypervisor.power_on(NAME)

    async def is_stuck() -> bool:
        return (await real.hypervisor.boot_signs(NAME)).stuck == "its kernel panicked"

    await until(is_stuck)
    signs = await real.hypervisor.boot_signs(NAME)
    assert "Kernel panic - not syncing" in signs.last_lines
    assert signs.last_lines.isprintable()
    assert not signs.is_up
    assert not await real.hypervisor.is_up(NAME)
    assert (await real.hypervisor.volumes()).logs == {NAME}
    await real.hypervisor.power_off(NAME)
    await real.hypervisor.define(msgspec.structs.replace(real.spec, direct_kernel=False))  # the disk has no boot loader
    await real.hypervisor.power_on(NAME)

    async def finds_nothing() -> bool:
        return (await real.hypervisor.boot_signs(NAME)).stuck == "it finds nothing to boot from its disk"

    await until(finds_nothing)
    assert "panic" not in (await real.hypervisor.boot_signs(NAME)).last_lines  # it began anew


async def test_a_log_daemon_that_died_is_there_for_the_next_guest(real: RealRig) -> None:
    await prepare(real)
    pid = daemon.running_pid(real.data, "virtlogd")
    assert pid is not None
    ended = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([ended], [], [], 10)[0]  # a moment before that its socket still takes connections
    os.close(ended)
    await boot(real)
    assert daemon.running_pid(real.data, "virtlogd") not in (None, pid)
    killed = daemon.running_pid(real.data, "virtlogd")
    assert killed is not None
    os.kill(killed, signal.SIGKILL)  # under a guest that runs and goes on
    assert real.ssh("echo words > /dev/ttyS0; echo well").stdout == "well\n"


async def test_what_guests_say_is_kept_within_limits_and_goes_with_them(real: RealRig) -> None:
    await prepare(real)
    await boot(real)
    real.ssh(f"yes {'x' * 70} | head -c {daemon.MAX_LOG_BYTES + 9000} > /dev/ttyS0").check_returncode()
    folder = real.data / "pool" / "serial"
    assert {file.name for file in folder.iterdir()} == {f"{NAME}.log", f"{NAME}.log.0"}
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2 * daemon.MAX_LOG_BYTES
    assert not (await real.hypervisor.volumes()).unknown
    await real.hypervisor.remove(NAME)
    assert list(folder.iterdir()) == []


async def test_a_guest_of_an_earlier_vpsd_has_no_log_and_its_other_signs_count(real: RealRig) -> None:
    await prepare(real)
    xml = _change(real, lambda text: re.sub("<log [^>]*/>", "", text))
    assert "<log" not in xml
    await boot(real)

    async def agent_answers() -> bool:
        return (await real.hypervisor.boot_signs(NAME)).is_up

    await until(agent_answers)
    signs = await real.hypervisor.boot_signs(NAME)
    assert (signs.last_lines, signs.is_idle) == ("", False)


def _change(real: RealRig, change: Callable[[str], str]) -> str:
    """Define the guest otherwise, behind vpsd's back; its definition then."""
    host = libvirt.open(daemon.uri(real.data))
    try:
        host.defineXML(change(host.lookupByName(NAME).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
        xml: str = host.lookupByName(NAME).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return xml
    finally:
        host.close()


async def test_the_power_button_of_a_guest_that_would_not_notice_is_not_pressed(real: RealRig) -> None:
    await prepare(real)
    await real.hypervisor.power_on(NAME)
    host = libvirt.open(daemon.uri(real.data))
    try:
        host.lookupByName(NAME).suspend()  # active, and "not running": so is one that has just shut itself down
    finally:
        host.close()
    await until_power(real, PowerState.PAUSED)
    await real.hypervisor.request_shutdown(NAME)
    assert await power(real) is PowerState.PAUSED


async def test_a_guest_that_died_while_libvirtd_was_away_has_crashed(real: RealRig) -> None:
    await prepare(real)
    await real.hypervisor.power_on(NAME)
    daemon.stop_own_daemon(real.data)
    real.crash()
    await until_power(real, PowerState.CRASHED)


async def test_a_guest_that_powers_itself_off_is_off_and_watchers_hear_of_it(real: RealRig) -> None:
    heard: list[str] = []
    real.hypervisor.watch(heard.append)
    await prepare(real)
    await boot(real)
    heard.clear()
    real.ssh("poweroff")
    await until_power(real, PowerState.OFF)

    async def was_heard() -> bool:
        return NAME in heard

    await until(was_heard)


async def test_a_guest_that_reboots_comes_back_on_the_same_ports_and_watchers_hear_of_it(real: RealRig) -> None:
    heard: list[str] = []
    real.hypervisor.watch(lambda _: None, heard.append)
    await prepare(real)
    await boot(real)
    ask = "cat /proc/sys/kernel/random/boot_id"
    before = real.ssh(ask).stdout
    real.ssh("reboot")

    async def is_new() -> bool:
        return await real.hypervisor.is_up(NAME) and real.ssh(ask).stdout not in ("", before)

    assert before
    await until(is_new)
    assert set(heard) == {NAME}


async def test_the_host_says_what_it_is(real: RealRig) -> None:
    facts = await real.hypervisor.facts()
    assert facts.virt_type in ("kvm", "qemu")
    assert facts.memory_mb == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    assert facts.uri == daemon.uri(real.data)


async def test_figures_and_console_of_a_running_guest(real: RealRig) -> None:
    await prepare(real)
    await boot(real)

    async def agent_tells() -> bool:
        return (await real.hypervisor.stats(NAME)).disk_used_bytes is not None

    await until(agent_tells)
    usage = await real.hypervisor.stats(NAME)
    assert all(value is not None and value > 0 for value in msgspec.structs.astuple(usage))
    assert isinstance(real.hypervisor, LibvirtHypervisor)
    console = await real.hypervisor.console(NAME)
    await console.write(b"\r\n")
    assert await asyncio.wait_for(console.read(), 30)
    console.close()


async def test_an_upload_that_was_cut_off_is_never_taken_for_whole(real: RealRig, tmp_path: Path) -> None:
    image = msgspec.structs.replace(real.image, key="cut-off")

    def stop(fraction: float, text: str) -> None:
        upload.cancel()

    upload = asyncio.ensure_future(real.hypervisor.ensure_base(image, stop))
    with pytest.raises(asyncio.CancelledError):
        await upload

    async def is_unfinished() -> bool:
        return "cut-off" in (await real.hypervisor.volumes()).unfinished

    await until(is_unfinished)
    with pytest.raises(Unusable):
        await real.hypervisor.ensure_disk(NAME, "cut-off", 1 << 28)
    await real.hypervisor.ensure_base(image, silent)
    assert "cut-off" in (await real.hypervisor.volumes()).bases
    await real.hypervisor.delete_base("cut-off")
    volumes = await real.hypervisor.volumes()
    assert "cut-off" not in volumes.bases | volumes.unfinished


@pytest.mark.parametrize("back_to_bios", [False, True])
async def test_nothing_is_left_of_a_guest_that_boots_by_uefi(real: RealRig, back_to_bios: bool) -> None:
    bios = msgspec.structs.replace(real.spec, direct_kernel=False, cmdline="")
    real.spec = msgspec.structs.replace(bios, firmware="uefi")
    await prepare(real)
    await real.hypervisor.power_on(NAME)
    assert await power(real) is PowerState.RUNNING
    variables = real.data / "pool" / f"{NAME}-nvram.fd"
    assert variables.exists()
    assert not (await real.hypervisor.volumes()).unknown
    if back_to_bios:  # as a restore of an older backup does
        await real.hypervisor.power_off(NAME)
        await real.hypervisor.define(bios)
        await real.hypervisor.power_on(NAME)
        assert await power(real) is PowerState.RUNNING
    await real.hypervisor.remove(NAME)
    assert not variables.exists()
    assert not list((real.data / "libvirt").rglob("*_VARS.fd"))


async def test_guests_of_others_are_left_alone(real: RealRig) -> None:
    with pytest.raises(Unusable, match="does not belong to this vpsd"):
        await real.hypervisor.power_off("somebody-elses")


async def test_a_disk_of_an_older_vpsd_is_copied_whole_each_time(real: RealRig) -> None:
    """libvirt makes qcow2 disks of version 2 unless told otherwise, as vpsd once let it: those keep no bitmaps."""
    await prepare(real)
    real.make_older()
    await boot(real)
    real.write_note(NAME, "one")
    for checkpoint, since in (("m-1", None), ("m-2", "m-1")):
        assert (await copy(real, checkpoint, since)).since_checkpoint is None
        await (picture := Picture()).lay(real.hypervisor)
    await picture.write(real.hypervisor, f"{NAME}.4")
    await boot_from(real, f"{NAME}.4")
    assert real.read_note(f"{NAME}.4") == "one"


async def test_a_copy_and_a_second_disk_that_would_fill_the_pool_are_refused(
    real: RealRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await prepare(real)
    await boot(real)
    await copy(real, "m-1", None)
    await (picture := Picture()).lay(real.hypervisor)
    monkeypatch.setattr(libvirt.virStoragePool, "info", lambda _: [2, 100 << 30, 99 << 30, 1 << 20])
    with pytest.raises(Unusable, match="Not enough space"):
        await real.hypervisor.export_disk(NAME, "m-2", None)
    with pytest.raises(Unusable, match="Not enough space"):
        await picture.write(real.hypervisor, f"{NAME}.4")
    monkeypatch.undo()
    assert await power(real) is PowerState.RUNNING
    assert (await real.hypervisor.volumes()).disks == {NAME}
    assert (await copy(real, "m-2", "m-1")).since_checkpoint == "m-1"
