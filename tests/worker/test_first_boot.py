"""The first boot of a server made from a backup: somebody can always log in, or is told that nobody can."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.cloud import TINY, Cloud
from vpsd.hypervisor.protocol import GuestRun, PauseReason, PowerState
from vpsd.images import clones

ASK, HAS_NETWORK = clones.ask_command(), clones.has_network_command()
GuestRunner = Callable[[str, Sequence[str], bytes], GuestRun | None]


class Agent:
    """What an agent answers in guests of a kind, and what it was told to do."""

    def __init__(self, cloud_init: str | None) -> None:
        self.cloud_init = cloud_init
        self.can_set = GuestRun(0)
        self.has_network = True
        self.told: list[str] = []  # the names of the guests that were set right
        self.given = ""  # to the last of them

    def __call__(self, name: str, argv: Sequence[str], stdin: bytes) -> GuestRun | None:
        if list(argv) == ASK:
            return None if self.cloud_init is None else GuestRun(0, f"{self.cloud_init}\n")
        if list(argv) == HAS_NETWORK:
            return GuestRun(0 if self.has_network else 1)
        self.told.append(name)
        self.given = stdin.decode()
        return self.can_set


async def _backup(cloud: Cloud, cloud_init: str | None) -> tuple[Agent, Any]:
    agent = Agent(cloud_init)
    cloud.hypervisor.guest_run = agent
    return agent, await cloud.have_copy(await cloud.have_server("source"))


async def _order(cloud: Cloud, backup: Any, path: str = "", **body: Any) -> Any:
    order = {"name": "clone", "plan_id": TINY["plan_id"], "location": TINY["location"], "backup_id": backup["id"]}
    return await cloud.post(f"/api/v1/servers/{path}", {**order, **body})


async def _key(cloud: Cloud) -> int:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKXAUNfJY/JyqXeO35s/xoksDoq86DgTYmivuCURdqkV alice"
    answer = await cloud.post("/api/v1/ssh-keys/", {"name": "laptop", "public_key": key})
    assert answer.status_code == 201, answer.text
    key_id: int = answer.json()["id"]
    return key_id


async def _detail(cloud: Cloud, made: Any) -> Any:
    return (await cloud.get(f"/api/v1/servers/{made['id']}/")).json()


@pytest.mark.parametrize("state", ["enabled", "disabled", "missing", None])
async def test_a_backup_says_what_the_guest_said_of_its_cloud_init(cloud: Cloud, state: str | None) -> None:
    _, backup = await _backup(cloud, state)
    assert backup["cloud_init"] == state


async def test_what_makes_no_sense_and_what_is_off_is_unknown(cloud: Cloud) -> None:
    agent, backup = await _backup(cloud, "certainly")
    assert backup["cloud_init"] is None
    agent.cloud_init = "enabled"
    cloud.hypervisor.calls.clear()
    server = backup["server"]["id"]
    await cloud.post(f"/api/v1/servers/{server}/stop/")
    await cloud.work()
    assert (await cloud.have_copy(server))["cloud_init"] is None


async def test_where_cloud_init_runs_nothing_is_done_for_it(cloud: Cloud) -> None:
    agent, backup = await _backup(cloud, "enabled")
    made = (await _order(cloud, backup, user_data="#!/bin/sh\n")).json()
    assert made["message"] == "Server is being provisioned. This may take 2-5 minutes."
    agent.cloud_init = None  # and nobody waits for the agent
    await cloud.work()
    assert (await _detail(cloud, made))["status"] == "active"
    assert (await cloud.row(made["id"])).status_detail is None
    assert agent.told == []


@pytest.mark.parametrize("state", ["disabled", "missing"])
async def test_where_it_does_not_the_agent_sets_everything_once(cloud: Cloud, state: str) -> None:
    agent, backup = await _backup(cloud, state)
    made = (await _order(cloud, backup, ssh_key_id=await _key(cloud), hostname="web.example.org")).json()
    assert (
        f"cloud-init is {state} in this backup: vpsd sets network, SSH key, hostname and host keys" in made["message"]
    )
    assert "password" not in made
    cloud.hypervisor.calls.clear()
    await cloud.work()
    assert (await _detail(cloud, made))["status"] == "active"
    assert agent.told == [cloud.guest(made["id"])]
    assert cloud.hypervisor.calls.count("request_shutdown") == 1
    assert cloud.hypervisor.calls.count("power_on") == 2  # it takes effect when it boots again
    source, row = await cloud.row(backup["server"]["id"]), await cloud.row(made["id"])
    assert f"old_mac=52:54:00:{source.uuid[0:2]}:{source.uuid[2:4]}:{source.uuid[4:6]}\n" in agent.given
    assert f"\nmac=52:54:00:{row.uuid[0:2]}:" in f"\n{agent.given}"
    assert "hostname=web\n" in agent.given
    assert "fqdn=web.example.org\n" in agent.given
    assert "key='ssh-ed25519 AAAA" in agent.given
    assert agent.given.endswith("password_hash=''")
    for command in ("reboot", "stop", "start"):
        assert (await cloud.post(f"/api/v1/servers/{made['id']}/{command}/")).status_code == 200
        await cloud.work()
    assert len(agent.told) == 1


async def test_the_password_of_the_answer_is_the_one_that_is_set(cloud: Cloud) -> None:
    agent, backup = await _backup(cloud, "missing")
    made = (await _order(cloud, backup)).json()
    await cloud.work()
    assert "password, hostname" in made["message"]
    assert len(made["password"]) == 20
    hashed = (await cloud.row(made["id"])).root_password_hash
    assert agent.given.endswith(f"password_hash='{hashed}'")


async def test_a_dry_run_says_the_same(cloud: Cloud) -> None:
    _, backup = await _backup(cloud, "disabled")
    answer = (await _order(cloud, backup, "?dry_run=1")).json()["answer"]
    assert "cloud-init is disabled in this backup" in answer["message"]


@pytest.mark.parametrize("state", ["disabled", "missing"])
async def test_user_data_that_nobody_would_run_is_refused(cloud: Cloud, state: str) -> None:
    _, backup = await _backup(cloud, state)
    refused = await _order(cloud, backup, user_data="#!/bin/sh\n")
    assert refused.status_code == 400
    assert f"cloud-init is {state}" in refused.text
    assert "user_data" in refused.text


async def test_a_server_that_nobody_can_get_into_is_not_active(cloud: Cloud) -> None:
    agent, backup = await _backup(cloud, "missing")
    made = (await _order(cloud, backup)).json()
    agent.cloud_init = None  # the agent does not answer any more
    powered_on = cloud.hypervisor.calls.count("power_on")
    await cloud.work()
    detail = await _detail(cloud, made)
    assert detail["status"] == "error"
    assert "cloud-init is missing in it, and its agent did not answer within 480 seconds" in detail["error"]
    assert cloud.hypervisor.calls.count("power_on") == powered_on + 1  # a slow one is not made slower
    guest = await cloud.hypervisor.guest(cloud.guest(made["id"]))
    assert guest is not None
    assert guest.power is PowerState.OFF
    agent.cloud_init = "missing"  # it was only slow: the next try does what was not done
    assert (await cloud.post(f"/api/v1/servers/{made['id']}/start/")).status_code == 200
    await cloud.work()
    assert (await _detail(cloud, made))["status"] == "active"
    assert agent.told == [cloud.guest(made["id"])]


async def test_why_it_could_not_be_set_up_is_said(cloud: Cloud) -> None:
    agent, backup = await _backup(cloud, "missing")
    agent.can_set = GuestRun(1, "", "the password cannot be set\n")
    made = (await _order(cloud, backup)).json()
    await cloud.work()
    detail = await _detail(cloud, made)
    assert (detail["status"], detail["error"].endswith("login: the password cannot be set.")) == ("error", True)


async def test_a_server_without_a_network_is_not_active(cloud: Cloud) -> None:
    agent, backup = await _backup(cloud, "disabled")
    agent.has_network = False
    made = (await _order(cloud, backup)).json()
    await cloud.work()
    assert "it has no network" in (await _detail(cloud, made))["error"]


@pytest.mark.parametrize("state", ["disabled", "missing"])
async def test_where_nobody_could_be_asked_the_new_guest_is(cloud: Cloud, state: str) -> None:
    agent, backup = await _backup(cloud, None)
    made = (await _order(cloud, backup)).json()
    assert "Nobody could be asked whether cloud-init runs in this backup" in made["message"]
    agent.cloud_init = state
    await cloud.work()
    assert (await _detail(cloud, made))["status"] == "active"
    assert agent.told == [cloud.guest(made["id"])]
    assert (await cloud.row(made["id"])).status_detail is None


async def test_where_nobody_can_be_asked_ever_the_server_says_so(cloud: Cloud) -> None:
    agent, backup = await _backup(cloud, None)
    made = (await _order(cloud, backup)).json()
    await cloud.work()
    assert (await _detail(cloud, made))["status"] == "active"
    assert agent.told == []
    detail = (await cloud.row(made["id"])).status_detail
    assert detail is not None
    assert "log in as on the server that was backed up" in detail
    assert (await cloud.operations(made["id"]))[0]["detail"] == detail


async def test_one_that_answers_nobody_is_off_and_says_what_it_may_lack(cloud: Cloud) -> None:
    _, backup = await _backup(cloud, None)
    cloud.hypervisor.never_boots = True
    made = (await _order(cloud, backup)).json()
    await cloud.work()
    detail = await _detail(cloud, made)
    assert detail["status"] == "error"
    assert "cloud-init may not run in it, and its agent did not answer" in detail["error"]


async def test_one_whose_storage_fails_it_is_not_powered_off_for_not_answering(cloud: Cloud) -> None:
    _, backup = await _backup(cloud, "disabled")

    def fails(call: str) -> None:
        if call == "power_on":
            cloud.hypervisor.storage.fails = True

    cloud.hypervisor.before_call = fails
    cloud.hypervisor.calls.clear()
    made = (await _order(cloud, backup)).json()
    await cloud.work()
    assert "power_off" not in cloud.hypervisor.calls
    assert (await cloud.operations(made["id"]))[0]["error"] == PauseReason.IO_ERROR.text
    assert (await _detail(cloud, made))["status"] == "provisioning"
