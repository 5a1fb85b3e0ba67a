"""Hosts, added, changed and removed beside a running vpsd."""

from functools import partial

import pytest

from tests.cli.conftest import Command
from tests.running import Vpsd, until


def host(command: Command, name: str) -> dict[str, object]:
    (found,) = [one for one in command.json("host", "list") if one["name"] == name]
    return dict(found)


def test_this_machine_is_a_host_by_itself(command: Command, vpsd: Vpsd) -> None:
    vpsd.create("local")
    (local,) = [one for one in command.json("host", "list") if one["uri"] is None]
    assert (local["location"], local["state"], local["health"]) == ("any", "enabled", "ok")
    shown = command.json("host", "show", local["name"])
    assert "local" in [server["name"] for server in shown["on_it"]]
    assert "still has servers" in command.refused("host", "remove", local["name"])


def test_a_host_that_is_added_is_looked_after_by_the_running_worker(command: Command) -> None:
    added = command.json("host", "add", "second", "--uri", "simulator://second", "--location", "us-west")
    assert (added["health"], added["location"]) == ("ok", "us-west")
    assert [check["what"] for check in added["checks"] if check["ok"]] == ["connection", "guests", "pool", "clock"]
    until(lambda: host(command, "second")["looked_after_by"], "a worker to take it up")
    command("host", "remove", "second")


def test_what_is_given_out_of_a_host_and_whether_can_be_changed(command: Command) -> None:
    command("host", "add", "third", "--uri", "simulator://third")
    assert (
        command.json("host", "set", "third", "--cpu-ratio", "4", "--location", "eu-central")["location"] == "eu-central"
    )
    assert str(host(command, "third")["vcpus"]).endswith("x 4")
    assert command.json("host", "disable", "third")["state"] == "disabled"
    assert command.json("host", "enable", "third")["state"] == "enabled"
    assert command.json("host", "set", "third", "--location", "any")["location"] == "any"
    assert "give it --pool" in command.refused("host", "set", "third", "--uri", "qemu+ssh://root@third/embed")
    assert host(command, "third")["uri"] == "simulator://third"
    assert "was removed" in command("host", "remove", "third").stdout
    assert "There is no host 'third'" in command.refused("host", "show", "third")
    assert command("host", "add", "third", "--uri", "simulator://third").returncode == 0  # its name is free again
    command("host", "remove", "third")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("a b", "--uri", "simulator://x"), "is no name for a host"),
        (("x", "--uri", "http://x"), "give an address like qemu+ssh://root@node2/system"),
        (("x", "--uri", "qemu+ssh://root:secret@x/system"), "carries no password"),
        (("x", "--uri", "simulator://x", "--location", "moon"), "There is no location 'moon'"),
        (("x", "--uri", "qemu+unix:///system?socket=/nowhere", "--pool", "/tmp/x"), "x was not added: connection: "),
    ],
)
def test_what_cannot_be_a_host_is_refused_with_the_reason(
    command: Command, arguments: tuple[str, ...], why: str
) -> None:
    assert why in command.refused("host", "add", *arguments)
    assert "x" not in [one["name"] for one in command.json("host", "list")]


def test_a_host_is_there_once(command: Command) -> None:
    command("host", "add", "fourth", "--uri", "simulator://fourth")
    assert "There is a host 'fourth' already" in command.refused("host", "add", "fourth", "--uri", "simulator://5")
    assert "has the address" in command.refused("host", "add", "fifth", "--uri", "simulator://fourth")
    command("host", "add", "fifth", "--uri", "simulator://fifth")
    assert "has the address" in command.refused("host", "set", "fifth", "--uri", "simulator://fourth")
    command("host", "set", "fifth", "--uri", "simulator://fifth")  # its own
    command("host", "remove", "fourth")
    command("host", "remove", "fifth")


def test_a_host_that_answers_is_not_evacuated(command: Command) -> None:
    command("host", "add", "sixth", "--uri", "simulator://sixth")
    assert "sixth answers" in command.refused("host", "evacuate", "sixth", "--fenced")
    command("host", "remove", "sixth")


def test_a_host_that_is_out_of_reach_is_evacuated_only_if_it_was_seen_to_be_off(command: Command) -> None:
    command("host", "add", "lost", "--uri", "qemu+unix:///system?socket=/nowhere", "--pool", "/srv/vpsd", "--force")
    until(lambda: host(command, "lost")["health"] == "unreachable", "a worker to try")
    assert "does not mean that its servers are off" in command.refused("host", "evacuate", "lost")
    assert command.json("host", "evacuate", "lost", "--fenced") == []
    assert host(command, "lost")["state"] == "fenced"
    command("host", "remove", "lost")


def test_a_host_is_drained_and_its_servers_run_on_another_one(command: Command, vpsd: Vpsd) -> None:
    local = next(str(one["name"]) for one in command.json("host", "list") if one["uri"] is None)
    for name in ("leaves", "takes"):
        command("host", "add", name, "--uri", f"simulator://{name}", "--location", "us-west")
    until(lambda: host(command, "takes")["looked_after_by"], "a worker to take it up")
    servers = [vpsd.create(f"moved-{number}") for number in range(2)]
    for server in servers:
        vpsd.until_status(server["id"], "active")
        if server["name"] not in _names(command, "leaves"):
            assert command.json("server", "migrate", str(server["id"]), "--host", "leaves")["to_host"] == "leaves"
            until(partial(_is_on, command, server["name"], "leaves"), "it to be there")
    command("host", "disable", local)
    command("host", "disable", "takes")
    refused = command("host", "drain", "leaves", "--json")
    assert refused.returncode == 1
    assert "No other host takes the server now" in refused.stdout
    assert host(command, "leaves")["state"] == "draining"
    command("host", "enable", "takes")
    done = command.json("host", "drain", "leaves")
    assert (done["left"], len(_names(command, "takes"))) == ([], 2)
    assert command("host", "drain", "leaves").stdout == "leaves has no servers any more.\n"
    assert host(command, "leaves")["servers"] == 0
    for server in servers:
        assert vpsd.get(f"servers/{server['id']}/")["status"] == "active"
        vpsd.delete(server["id"])
    command("host", "enable", local)
    assert command.json("host", "enable", "leaves")["state"] == "enabled"
    for name in ("leaves", "takes"):
        until(partial(_is_removed, command, name), "its servers to be gone")


def _is_on(command: Command, server: str, name: str) -> bool:
    return server in _names(command, name)


def _is_removed(command: Command, name: str) -> bool:
    return command("host", "remove", name).returncode == 0


def _names(command: Command, name: str) -> list[str]:
    return [server["name"] for server in command.json("host", "show", name)["on_it"]]


def test_hosts_share_a_pool_only_if_they_see_the_same_folder(command: Command) -> None:
    def add(name: str, folder: str, *more: str) -> tuple[str, ...]:
        return ("host", "add", name, "--uri", f"simulator://{name}", "--pool", folder, "--shared", "fast", *more)

    assert "Say with --pool which folder" in command.refused(
        "host", "add", "s1", "--uri", "simulator://s1", "--shared", "fast"
    )
    first = command.json(*add("s1", "/mnt/fast"))
    assert (first["shared_pool"], first["checks"][-1]["what"], first["checks"][-1]["ok"]) == ("fast", "shared", True)
    refused = command.refused(*add("s2", "/mnt/another"))
    assert "s2 was not added: shared: s1 does not see a file that was written here" in refused
    assert "s1 sees what is written" in command.json(*add("s2", "/mnt/fast"))["checks"][-1]["text"]
    assert "s1 does not see" in command.refused("host", "set", "s2", "--pool", "/mnt/another")
    assert "is in the pool fast" in command.refused("host", "set", "s2", "--shared", "slow")
    command("host", "add", "s3", "--uri", "simulator://s3")
    assert "does not see" in command.refused("host", "set", "s3", "--pool", "/mnt/another", "--shared", "fast")
    assert command.json("host", "set", "s3", "--pool", "/mnt/fast", "--shared", "fast")["shared_pool"] == "fast"
    for name in ("s1", "s2", "s3"):
        command("host", "remove", name)
