"""What guests say of their first boot, read beside everything else."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.cloud import Cloud
from tests.servers.test_guest_report import FINGERPRINT, KEY
from vpsd.hypervisor.protocol import GuestRun, PowerState
from vpsd.servers.guest_report import COMMAND

SCRIPT = "#!/bin/sh\ntrue\n"


class Guest:
    """Its agent, which says what the test wants and counts how often it was asked."""

    def __init__(self, cloud: Cloud) -> None:
        self.asked = 0
        self.answers = True
        self.said: dict[str, Any] | None = None
        self.keys = KEY
        cloud.hypervisor.guest_run = self._run

    def _run(self, name: str, argv: Sequence[str], stdin: bytes) -> GuestRun | None:
        assert tuple(argv) == COMMAND
        self.asked += 1
        said = "" if self.said is None else json.dumps(self.said)
        return GuestRun(0, f"{self.keys}\n\n--\n{said}\n") if self.answers else None


async def detail(cloud: Cloud, server: int) -> tuple[str | None, str | None, Any]:
    found = (await cloud.get(f"/api/v1/servers/{server}/")).json()
    return found["user_data_status"], found["user_data_error"], found["ssh_host_keys"]


async def test_user_data_runs_until_the_guest_says_how_it_ended(cloud: Cloud) -> None:
    guest, reader = Guest(cloud), cloud.guest_reader()
    server = await cloud.create(user_data=SCRIPT)
    assert await detail(cloud, server) == ("running", None, None)
    await reader.look()
    assert guest.asked == 0  # it does not run yet
    await cloud.work()
    await reader.look()
    keys = [{"type": "ssh-ed25519", "fingerprint": FINGERPRINT, "public_key": KEY}]
    assert await detail(cloud, server) == ("running", None, keys)
    guest.said = {"status": "error", "errors": ["exit status 3", "another"]}
    cloud.clock.advance(5)
    await reader.look()
    assert await detail(cloud, server) == ("error", "exit status 3", keys)
    event = (await cloud.get("/api/v1/account/events/")).json()["results"][0]
    assert (event["action"], event["actor"], event["detail"]) == ("server.user_data", "vpsd", "error: exit status 3")
    guest.said = {"status": "done"}
    cloud.clock.advance(5)
    await reader.look()
    assert (await detail(cloud, server))[0] == "error"  # the verdict is final
    assert guest.asked == 2


async def test_a_server_without_user_data_is_asked_for_its_keys_after_every_boot(cloud: Cloud) -> None:
    guest, reader = Guest(cloud), cloud.guest_reader()
    server = await cloud.have_server()
    for _ in range(3):
        await reader.look()
        cloud.clock.advance(100)
    assert guest.asked == 1
    assert (await detail(cloud, server))[:2] == (None, None)
    guest.keys = ""  # its owner deleted them: what was read stays
    await cloud.post(f"/api/v1/servers/{server}/reboot/")
    await cloud.work()
    await reader.look()
    assert guest.asked == 2
    assert (await detail(cloud, server))[2][0]["public_key"] == KEY


async def test_a_guest_without_an_agent_is_asked_less_and_less_and_given_up_after_an_hour(cloud: Cloud) -> None:
    guest, reader = Guest(cloud), cloud.guest_reader()
    guest.answers = False
    server = await cloud.create(user_data=SCRIPT)
    await cloud.work()
    for _ in range(3700 // 2):
        await reader.look()
        cloud.clock.advance(2)
    assert guest.asked < 70
    assert await detail(cloud, server) == ("unknown", "The guest did not say how within an hour.", None)


@pytest.mark.parametrize("has_said", [True, False])
async def test_a_guest_that_went_off_is_not_running_its_user_data(cloud: Cloud, has_said: bool) -> None:
    guest, reader = Guest(cloud), cloud.guest_reader()
    guest.said = {"status": "done"} if has_said else None
    server = await cloud.create(user_data=SCRIPT)
    await cloud.work()
    await reader.look()
    cloud.clock.advance(1)
    cloud.hypervisor.happens(cloud.guest(server), PowerState.OFF)
    await cloud.reconciler().reconcile()
    await reader.look()
    expected = ("done", None) if has_said else ("unknown", "The guest went off before it said how.")
    assert (await detail(cloud, server))[:2] == expected


async def test_a_rebuild_begins_anew(cloud: Cloud) -> None:
    guest, reader = Guest(cloud), cloud.guest_reader()
    guest.said = {"status": "error", "errors": ["e"]}
    servers = [await cloud.create(name, user_data=text) for name, text in (("with", SCRIPT), ("without", None))]
    await cloud.work()
    await reader.look()
    assert [(await detail(cloud, server))[0] for server in servers] == ["error", None]
    for server in servers:
        await cloud.post(f"/api/v1/servers/{server}/rebuild/", {"os_id": 3})
    await cloud.work()
    assert [await detail(cloud, server) for server in servers] == [("running", None, None), (None, None, None)]
    guest.said = {"status": "done"}
    cloud.clock.advance(1)
    await reader.look()
    assert [(await detail(cloud, server))[:2] for server in servers] == [("done", None), (None, None)]


async def test_what_a_guest_said_that_is_gone_by_then_is_not_written_down(cloud: Cloud) -> None:
    guest, reader = Guest(cloud), cloud.guest_reader()
    guest.said = {"status": "done"}
    server = await cloud.create(user_data=SCRIPT)
    await cloud.work()

    async def rebuild(call: str) -> None:
        if call == "run_in_guest":
            cloud.hypervisor.after_call = None
            await cloud.post(f"/api/v1/servers/{server}/rebuild/", {"os_id": 3})
            cloud.clock.advance(1)
            await cloud.work()

    cloud.hypervisor.after_call = rebuild
    await reader.look()
    assert guest.asked == 1
    assert await detail(cloud, server) == ("running", None, None)


async def test_one_guest_that_breaks_the_agent_keeps_nobody_from_the_others(cloud: Cloud) -> None:
    guest, reader = Guest(cloud), cloud.guest_reader()
    bad, good = await cloud.have_server("bad"), await cloud.have_server("good")
    plain = cloud.hypervisor.guest_run

    def run(name: str, argv: Sequence[str], stdin: bytes) -> GuestRun | None:
        if name == cloud.guest(bad):
            raise RuntimeError("broken")
        return plain(name, argv, stdin)

    cloud.hypervisor.guest_run = run
    await reader.look()
    assert [(await detail(cloud, server))[2] is None for server in (bad, good)] == [True, False]
    assert guest.asked == 1
