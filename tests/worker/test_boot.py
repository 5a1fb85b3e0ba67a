"""A server that is well is never harmed: what becomes of boots that are slow, silent, or get nowhere."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.billing.books import charge, rentals_of
from tests.cloud import Cloud
from vpsd.hypervisor.protocol import PowerState
from vpsd.lifecycle import Status
from vpsd.servers import updates

PANIC = "[    1.5] \x1b[31mKernel panic - not syncing: Attempted to kill init!\x1b[0m\r\n[    1.6] Call Trace:\r\n"
SHELL = "You are in emergency mode. After logging in, type journalctl -xb\r\nPress Enter for maintenance\r\n"
NO_DISK = "Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n"
STUCK = [(PANIC, "its kernel panicked"), (SHELL, "it is in an emergency shell"), (NO_DISK, "it finds nothing to boot")]
BOOTS = ["reboot", "start", "resize", "restore", "recover", "undelete", "resume"]


def is_silent(cloud: Cloud) -> None:
    """sshd listens elsewhere, or is firewalled, and there is no agent: as healthy as it can be."""
    cloud.hypervisor.ports_answer = cloud.hypervisor.has_agent = False


def speaks(cloud: Cloud) -> None:
    cloud.hypervisor.ports_answer = cloud.hypervisor.has_agent = True


def gets_nowhere(cloud: Cloud, text: str = "") -> None:
    cloud.hypervisor.never_boots, cloud.hypervisor.boot_text = True, text


async def shown(cloud: Cloud, server: int) -> Any:
    """The server, as list and detail agree on it."""
    detail = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    (listed,) = (await cloud.get("/api/v1/servers/")).json()["results"]
    assert (listed["status"], listed["status_detail"]) == (detail["status"], detail["status_detail"])
    return detail


async def boot_by(cloud: Cloud, server: int, command: str, make: Callable[[Cloud], None]) -> None:
    """Boot a server that was up before in one of the ways there are; `make` says how it fares."""
    path = f"/api/v1/servers/{server}/"
    if command == "start":
        await cloud.post(f"{path}stop/")
        await cloud.settle()
    elif command == "undelete":
        cloud.set(undelete_hours=24)
        await cloud.ask("DELETE", path)
        await cloud.settle()
    elif command == "resume":
        cloud.set(grace_hours=0)
        await cloud.have_balance(-1)
        await cloud.biller().bill()
        cloud.clock.advance(1)
        await cloud.biller().bill()
        await cloud.settle()
        assert await cloud.status(server) == "suspended"
    backup = await cloud.have_copy(server) if command == "restore" else {"id": 0}
    make(cloud)
    cloud.hypervisor.calls.clear()
    if command == "recover":
        cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)
        await cloud.reconciler().reconcile()
    elif command == "resume":
        await cloud.have_balance(100_000_000)
        await cloud.biller().bill()
    else:
        body = {"plan_id": 1} if command == "resize" else None
        asked = f"/api/v1/backups/{backup['id']}/restore/" if command == "restore" else f"{path}{command}/"
        answer = await cloud.post(asked, body)
        assert answer.status_code == 200, answer.text
    await cloud.work()


@pytest.fixture
async def server(cloud: Cloud) -> int:
    return await cloud.have_server()


@pytest.mark.parametrize("command", BOOTS)
async def test_a_silent_server_is_left_running_whatever_it_was_told(cloud: Cloud, server: int, command: str) -> None:
    await boot_by(cloud, server, command, make=is_silent)
    detail = await shown(cloud, server)
    assert detail["status"] == "active"
    assert detail["status_detail"] == ("The guest did not answer within 240 seconds of power-on. It was left running.")
    assert detail["error"] is None
    assert cloud.hypervisor.calls.count("power_on") == 1
    assert "power_off" not in cloud.hypervisor.calls
    last = (await cloud.operations(server))[-1]
    assert (last["status"], last["detail"]) == ("succeeded", detail["status_detail"])


async def test_a_server_that_is_silent_from_its_making_on_is_its_customers(cloud: Cloud) -> None:
    is_silent(cloud)
    cloud.hypervisor.boot_text = "Starting kernel\r\n"
    posted_ms = cloud.clock.now_ms()
    server = await cloud.create()
    await cloud.work()
    detail = await shown(cloud, server)
    assert (detail["status"], detail["ip_address"], detail["ssh"]) == ("active", "127.10.0.2", "ssh root@127.10.0.2")
    assert detail["status_detail"].endswith("Its serial console ends with: Starting kernel")
    assert cloud.hypervisor.calls.count("power_on") == 1
    cloud.clock.advance(3600)
    await charge(cloud)
    (rental,) = await rentals_of(cloud, server)
    assert rental.from_ms == posted_ms  # it runs and is theirs
    assert rental.was_charged


@pytest.mark.parametrize("sign", ["has_agent", "login"])
async def test_an_agent_and_a_login_prompt_are_signs_of_life(cloud: Cloud, sign: str) -> None:
    is_silent(cloud)
    if sign == "login":
        cloud.hypervisor.boot_text = f"{PANIC}Debian GNU/Linux 12 web ttyS0\r\n\r\nweb login: [    9.2] late news\r\n"
    else:
        cloud.hypervisor.has_agent = True
    began_ms = cloud.clock.now_ms()
    server = await cloud.create()
    await cloud.work()
    detail = await shown(cloud, server)
    assert (detail["status"], detail["status_detail"]) == ("active", None)
    assert 10 <= (cloud.clock.now_ms() - began_ms) / 1000 <= 13  # SSH gets a little time, and no more
    assert not cloud.hypervisor.probed  # what was opened to find out would be among its pending logins


async def test_whoever_sees_active_can_log_in_where_ssh_comes_a_little_after_the_agent(cloud: Cloud) -> None:
    cloud.hypervisor.ports_answer = False
    began_ms = cloud.clock.now_ms()

    def listen_later(call: str) -> None:
        cloud.hypervisor.ports_answer = cloud.clock.now_ms() - began_ms > 5000

    cloud.hypervisor.before_call = listen_later
    await cloud.create()
    await cloud.work()
    assert 5 < (cloud.clock.now_ms() - began_ms) / 1000 < 6


@pytest.mark.parametrize(("text", "why"), STUCK)
async def test_a_making_that_gets_nowhere_is_tried_twice_and_ends_with_the_guests_words(
    cloud: Cloud, text: str, why: str
) -> None:
    gets_nowhere(cloud, text)
    began_ms = cloud.clock.now_ms()
    server = await cloud.create()
    await cloud.work()
    detail = await shown(cloud, server)
    assert (detail["status"], detail["status_detail"], detail["ip_address"]) == ("error", None, None)
    assert detail["error"].startswith(f"The guest did not answer, twice: {why}")
    assert text.strip().splitlines()[-1] in detail["error"]
    assert detail["error"].isprintable()
    assert cloud.hypervisor.calls.count("power_on") == 2
    assert (await cloud.hypervisor.guests())[cloud.guest(server)].power is PowerState.OFF
    assert cloud.clock.now_ms() - began_ms < 10_000  # who says so itself is not waited for


@pytest.mark.parametrize("text", ["", PANIC])
@pytest.mark.parametrize("command", ["reboot", "start", "resize", "undelete", "resume"])
async def test_a_server_that_was_up_before_keeps_its_power_even_where_it_gets_nowhere(
    cloud: Cloud, server: int, command: str, text: str
) -> None:
    await boot_by(cloud, server, command, make=lambda cloud: gets_nowhere(cloud, text))
    detail = await shown(cloud, server)
    assert detail["status"] == "active"
    assert ("its kernel panicked" if text else "neither read its disk") in detail["status_detail"]
    assert cloud.hypervisor.calls.count("power_on") == 1
    assert "power_off" not in cloud.hypervisor.calls


async def test_a_guest_that_vpsd_brings_back_is_powered_on_twice_and_then_left_alone(cloud: Cloud, server: int) -> None:
    await boot_by(cloud, server, "recover", make=gets_nowhere)
    detail = await shown(cloud, server)
    assert (detail["status"], "neither read its disk" in detail["status_detail"]) == ("active", True)
    assert cloud.hypervisor.calls.count("power_on") == 2
    assert (await cloud.hypervisor.guests())[cloud.guest(server)].power is PowerState.RUNNING
    await cloud.settle()
    assert cloud.hypervisor.calls.count("power_on") == 2


async def test_a_guest_that_somebody_started_is_taken_in_as_it_is(cloud: Cloud) -> None:
    server = await cloud.have_server(status=Status.STOPPED)
    gets_nowhere(cloud, SHELL)
    await cloud.hypervisor.power_on(cloud.guest(server))  # an operator repairs it, with virsh
    cloud.hypervisor.calls.clear()
    await cloud.settle()
    assert (await shown(cloud, server))["status"] == "active"
    assert "power_off" not in cloud.hypervisor.calls


async def test_a_restored_disk_that_gets_nowhere_gives_way_to_the_one_before(cloud: Cloud, server: int) -> None:
    await boot_by(cloud, server, "restore", make=lambda cloud: gets_nowhere(cloud, NO_DISK))
    detail = await shown(cloud, server)
    assert detail["status"] == "error"
    assert "No bootable device." in detail["error"]
    assert detail["error"].endswith("The server has the disk that it had before.")


async def test_a_slow_guest_loses_its_note_when_it_is_up(cloud: Cloud, server: int) -> None:
    cloud.hypervisor.boot_seconds = 500
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await cloud.work()
    watcher = cloud.boot_watcher()
    await watcher.look()
    assert (await shown(cloud, server))["status_detail"] is not None
    cloud.clock.advance(300)
    await watcher.look()
    assert (await shown(cloud, server))["status_detail"] is None
    cloud.hypervisor.calls.clear()
    await watcher.look()
    assert cloud.hypervisor.calls == []  # nobody else is looked at


async def test_what_others_say_of_a_server_is_not_taken_back(cloud: Cloud, server: int) -> None:
    async with cloud.writing() as ctx:
        await updates.set_status_detail(ctx, server, "The host is full.")
    await cloud.boot_watcher().look()
    assert (await shown(cloud, server))["status_detail"] == "The host is full."


@pytest.mark.parametrize("command", ["stop", "reboot"])
async def test_a_note_ends_with_the_status_that_it_is_about(cloud: Cloud, server: int, command: str) -> None:
    is_silent(cloud)
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await cloud.work()
    assert (await shown(cloud, server))["status_detail"] is not None
    speaks(cloud)
    cloud.clock.advance(1)
    await cloud.post(f"/api/v1/servers/{server}/{command}/")
    assert (await shown(cloud, server))["status_detail"] is None
    await cloud.work()
    assert (await shown(cloud, server))["status_detail"] is None


async def test_a_note_ends_when_the_guest_goes_down_by_itself(cloud: Cloud, server: int) -> None:
    is_silent(cloud)
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await cloud.work()
    assert (await shown(cloud, server))["status_detail"] is not None
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    await cloud.settle()
    detail = await shown(cloud, server)
    assert (detail["status"], detail["status_detail"]) == ("stopped", None)


async def test_a_newer_note_is_not_taken_back_for_an_older_look(cloud: Cloud, server: int) -> None:
    is_silent(cloud)
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await cloud.work()

    async def say_more(call: str) -> None:
        if call == "is_up":
            speaks(cloud)
            async with cloud.writing() as ctx:
                await updates.set_status_detail(ctx, server, "The guest did not answer, twice.")

    cloud.hypervisor.before_call = say_more
    await cloud.boot_watcher().look()
    assert (await shown(cloud, server))["status_detail"] == "The guest did not answer, twice."


async def test_a_guest_that_somebody_suspends_while_it_boots_goes_on(cloud: Cloud, server: int) -> None:
    suspended: list[str] = []

    def suspend(call: str) -> None:
        if call == "is_up" and not suspended:
            suspended.append(call)
            cloud.hypervisor.happens(cloud.guest(server), PowerState.PAUSED)

    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    cloud.hypervisor.before_call = suspend
    began_ms = cloud.clock.now_ms()
    await cloud.work()
    assert suspended
    assert await cloud.status(server) == "active"
    assert (await cloud.hypervisor.guests())[cloud.guest(server)].power is PowerState.RUNNING
    assert cloud.clock.now_ms() - began_ms < 10_000


@pytest.mark.parametrize("made", [False, True])
async def test_a_guest_that_powers_itself_off_when_it_boots_has_stopped(cloud: Cloud, made: bool) -> None:
    server = await cloud.have_server() if made else await cloud.create()
    is_silent(cloud)
    if made:
        await cloud.post(f"/api/v1/servers/{server}/reboot/")

    def power_off(call: str) -> None:
        if call == "is_up":
            cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)

    cloud.hypervisor.before_call = power_off
    cloud.hypervisor.calls.clear()
    await cloud.work()
    detail = await shown(cloud, server)
    assert (detail["status"], detail["status_detail"], detail["error"]) == ("stopped", None, None)
    assert detail["ip_address"] is not None
    assert cloud.hypervisor.calls.count("power_on") == 1


async def test_a_guest_whose_qemu_dies_at_its_boot_is_not_called_active(cloud: Cloud, server: int) -> None:
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    is_silent(cloud)

    def die(call: str) -> None:
        if call == "is_up":
            cloud.hypervisor.happens(cloud.guest(server), PowerState.CRASHED)

    cloud.hypervisor.before_call = die
    cloud.hypervisor.calls.clear()
    await cloud.work()
    detail = await shown(cloud, server)
    assert (detail["status"], detail["status_detail"]) == ("error", None)
    assert detail["error"].startswith("The guest did not answer, twice: its QEMU process ended.")
    assert cloud.hypervisor.calls.count("power_on") == 2
