"""Commands that look at servers and host while vpsd works on them."""

import asyncio

from tests.running import Vpsd, until
from vpsd.hypervisor.protocol import GuestSpec, guest_name
from vpsd.hypervisor.simulator import Simulator


def test_servers_of_all_accounts_are_listed_with_their_guests(vpsd: Vpsd) -> None:
    server = vpsd.create("listed")["id"]
    vpsd.until_status(server, "active")
    (shown,) = [found for found in vpsd.run_json("server", "list") if found["id"] == server]
    assert (shown["name"], shown["status"]) == ("listed", "active")
    assert shown["guest"].endswith(f"-{server}")
    assert shown["guest"] in vpsd.run("server", "list").stdout


def test_check_finds_what_has_no_owner_and_mends_it_when_told_to(vpsd: Vpsd) -> None:
    server = vpsd.create("gone")["id"]
    vpsd.until_status(server, "active")
    assert vpsd.ask("DELETE", f"servers/{server}/?now=1").status_code == 204
    until(lambda: vpsd.rows(f"SELECT 1 FROM servers WHERE id = {server} AND purged_at_ms > 0"), "its end")
    ((instance, uuid),) = vpsd.rows(f"SELECT instance, uuid FROM installation, servers WHERE servers.id = {server}")
    name = guest_name(instance, server)
    asyncio.run(leave_behind(vpsd, name, uuid))
    done = vpsd.run("check")
    assert done.returncode == 1
    assert name in done.stdout
    (found,) = vpsd.run_json("check")
    assert (found["kind"], found["name"], found["fixed"]) == ("guest", name, None)
    (fixed,) = vpsd.run_json("check", "--fix")
    assert fixed["fixed"] == "removed from the host"
    done = vpsd.run("check")
    assert (done.returncode, done.stdout) == (0, "No inconsistencies.\n")


async def leave_behind(vpsd: Vpsd, name: str, uuid: str) -> None:
    """Have a guest on the host that no server speaks for."""
    simulator = Simulator(vpsd.data / "simulator.journal")
    await simulator.define(GuestSpec(name, name, uuid, 1, 128, "base", False, "", "", "127.10.99.99", ()))
    await simulator.close()


def test_the_doctor_says_what_runs_the_guests_and_every_setting(vpsd: Vpsd) -> None:
    done = vpsd.run("doctor")
    assert done.returncode == 0
    assert "hypervisor   simulator" in done.stdout
    assert f"VPSD_DATA_DIR={vpsd.data}" in done.stdout
    assert "How long a guest may take to answer" in done.stdout
    report = vpsd.run_json("doctor")
    assert report["host"]["driver"] == "simulator"
    assert report["settings"]["listen"] == vpsd.listen


def test_the_version_is_said(vpsd: Vpsd) -> None:
    assert vpsd.run("version").stdout.strip() == vpsd.run_json("version")["version"]
