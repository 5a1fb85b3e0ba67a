"""kill -9 of vpsd in the middle of everything, on real guests: each server arrives where its owner wanted it."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, until
from vpsd.flows.table import FLOWS
from vpsd.lifecycle import Command

pytestmark = pytest.mark.guest

SEED = 7
# Stopping and starting for another reason: an account's affair (test_credit), and a setting's (test_undelete).
# The daily backup is a backup, and a move takes a second host (tests/storm_real, tests/hypervisor/test_moving.py).
_ELSEWHERE = {
    *(Command.SUSPEND, Command.RESUME, Command.SOFT_DELETE, Command.UNDELETE, Command.BACKUP_DAILY),
    Command.MIGRATE,
}
COMMANDS = [command for command in Command if command not in _ELSEWHERE]
ARRIVES: dict[Command, str] = {
    **dict.fromkeys(COMMANDS, "active"),
    Command.STOP: "stopped",
    Command.HARD_STOP: "stopped",
}


def test_vpsd_killed_in_the_middle_of_every_flow_twice_brings_every_server_where_it_belongs(
    vpsd: Vpsd, host: Host, key: Path, key_id: int
) -> None:
    servers, boot_ids = prepare(vpsd, key, key_id)
    host.until_no_image_is_made()
    os.kill(host.process(servers[Command.RECOVER]).pid, signal.SIGKILL)
    until(lambda: under_way(vpsd).get(servers[Command.RECOVER]), "vpsd to notice")
    with host.frozen():
        tell_all(vpsd, servers, key_id)
        until(lambda: all(step for step in map(under_way(vpsd).get, servers.values())), "all flows to be under way")
        assert len(servers) == len(COMMANDS)
        vpsd.kill()
        print("killed at", tell_steps(vpsd))
    vpsd.start()
    kill_at_a_chance_step(vpsd, servers)
    vpsd.start()
    host.until_at_rest(servers.values())
    assert_arrived(vpsd, host, servers, boot_ids, key)
    for command in set(servers) - {Command.DELETE}:
        vpsd.delete(servers[command])
    host.until_at_rest(servers.values())
    assert vpsd.run_json("check") == []


def prepare(vpsd: Vpsd, key: Path, key_id: int) -> tuple[dict[Command, int], dict[Command, str]]:
    """A server for every command but create, in the status that the command wants; and their present boots."""
    wanted = [command for command in COMMANDS if command is not Command.CREATE]
    servers: dict[Command, int] = {
        command: vpsd.create(f"told-{command.replace('_', '-')}", ssh_key_id=key_id)["id"] for command in wanted
    }
    # all are up before anybody logs in: where a dozen boot on few cores, a login may take longer than ssh waits
    lines = {command: vpsd.until_status(server, "active")["ssh"] for command, server in servers.items()}
    boot_ids = {command: Login(line, key=key).boot_id for command, line in lines.items()}
    vpsd.until_copied(
        vpsd.post(f"servers/{servers[Command.RESTORE]}/snapshot/", {"label": "to-go-back-to"}), "snapshot"
    )
    vpsd.post(f"servers/{servers[Command.START]}/stop/")
    vpsd.until_status(servers[Command.START], "stopped")
    return servers, boot_ids


def tell_all(vpsd: Vpsd, servers: dict[Command, int], key_id: int) -> None:
    """Every command to its own server; recover is vpsd's own affair."""
    servers[Command.CREATE] = vpsd.create("told-create", ssh_key_id=key_id)["id"]
    for command in (Command.START, Command.STOP, Command.REBOOT):
        vpsd.post(f"servers/{servers[command]}/{command}/")
    vpsd.post(f"servers/{servers[Command.HARD_STOP]}/power/", {"action": "hard_stop"})
    vpsd.post(f"servers/{servers[Command.RESIZE]}/resize/", {"plan_id": 3})
    vpsd.post(f"servers/{servers[Command.GROW]}/resize/", {"plan_id": 5})
    vpsd.post(f"servers/{servers[Command.REBUILD]}/rebuild/", {"os_id": 1})
    vpsd.post(f"servers/{servers[Command.BACKUP]}/backup/")
    snapshot = vpsd.get(f"snapshots/?server_id={servers[Command.RESTORE]}")["results"][0]
    vpsd.post(f"snapshots/{snapshot['id']}/restore/")
    vpsd.delete(servers[Command.DELETE])
    changed = vpsd.ask("PATCH", f"servers/{servers[Command.CONFIGURE]}/", {"hostname": "configured.example.com"})
    assert changed.status_code == 200


def under_way(vpsd: Vpsd) -> dict[int, str | None]:
    """The steps of all open operations, by server; before the first of them a worker puts its mark on the guest."""
    step = "coalesce(step, CASE WHEN attempts > 0 THEN 'take' END)"
    return dict(vpsd.rows(f"SELECT server_id, {step} FROM operations WHERE finished_at_ms IS NULL"))


def tell_steps(vpsd: Vpsd) -> list[tuple[Any, ...]]:
    """Where every open operation is, for whoever reads the record of a test."""
    return vpsd.rows("SELECT command, step, attempts FROM operations WHERE finished_at_ms IS NULL")


def kill_at_a_chance_step(vpsd: Vpsd, servers: dict[Command, int]) -> None:
    """Kill vpsd once more, when a chance flow has been taken up again and has come to a chance step or further."""
    chance = random.Random(SEED)
    command = chance.choice([Command.CREATE, Command.START, Command.REBOOT, Command.RECOVER])
    names = [step.__name__ for step in FLOWS[command]]
    wanted = chance.randrange(names.index("make_disk"), len(names))
    where = f"server_id = {servers[command]} AND command = '{command}'"

    def has_come_there() -> bool:
        ((step, attempts, finished),) = vpsd.rows(
            f"SELECT step, attempts, finished_at_ms FROM operations WHERE {where} ORDER BY id DESC LIMIT 1"
        )
        return attempts > 1 and (finished is not None or (step in names and names.index(step) >= wanted))

    until(has_come_there, f"{command} to come to {names[wanted]}", 400)
    vpsd.kill()
    print("killed at", tell_steps(vpsd))


def assert_arrived(
    vpsd: Vpsd, host: Host, servers: dict[Command, int], boot_ids: dict[Command, str], key: Path
) -> None:
    details = {command: vpsd.ask("GET", f"servers/{server}/") for command, server in servers.items()}
    assert details.pop(Command.DELETE).status_code == 404
    for command, answer in details.items():
        detail = answer.json()
        assert detail["status"] == ARRIVES[command], (command, vpsd.operations(servers[command]))
        assert len(host.processes(servers[command])) == (detail["status"] == "active")
    stopped, undisturbed = (Command.STOP, Command.HARD_STOP), (Command.CONFIGURE, Command.GROW, Command.BACKUP)
    for command in [command for command in details if command not in stopped]:
        login = Login(details[command].json()["ssh"], key=key)
        until(login.answers, f"SSH after {command}")  # ten guests that boot at once may be slower than `active` waits
        boot_id = login.boot_id
        assert (boot_id == boot_ids.get(command)) == (command in undisturbed), command
    seed = vpsd.data / "pool" / f"{host.name(servers[Command.CONFIGURE])}-seed.iso"
    assert b"configured.example.com" in seed.read_bytes()
    assert [one["status"] for one in vpsd.get(f"backups/?server_id={servers[Command.BACKUP]}")["results"]] == [
        "completed"
    ]
    assert_one_of_each(vpsd, host)


def assert_one_of_each(vpsd: Vpsd, host: Host) -> None:
    """Every server has one domain, one disk, one seed and one address, and there are no more of these."""
    present: list[Any] = vpsd.get("servers/")["results"]
    names = sorted(host.name(server["id"]) for server in present)
    volumes = host.volumes()
    disks = [disk.partition(".")[0] for disk in volumes.disks]  # a restored one has a number behind
    assert [sorted(found) for found in (host.guests(), disks, volumes.seeds)] == [names] * 3
    assert not volumes.exports
    held = dict(vpsd.rows("SELECT server_id, address FROM addresses WHERE released_at_ms IS NULL"))
    assert held.keys() == {server["id"] for server in present}
    assert len(set(held.values())) == len(present)
    assert all(server["ip_address"] in (held[server["id"]], None) for server in present)  # null until it works
    assert vpsd.run_json("check") == []
