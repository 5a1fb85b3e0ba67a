"""No guest is called what every machine calls itself, or what programs read as somebody's address."""

import ipaddress
import random
import socket

import pytest

from tests.api.tables import change
from tests.cloud import TINY, Cloud
from vpsd.servers.hostnames import IsAddress, IsLocalhost, refusal
from vpsd.servers.models import servers

SERVERS = "/api/v1/servers/"

ITSELF = [
    *(
        "localhost",
        "LOCALHOST",
        "localhost.localdomain",
        "localhost.example.com",
        "localhost6.localdomain6",
        "localhost4",
    ),
    *("web.localhost", "a.b.LocalHost", "ip6-localhost", "ip6-loopback", "ip6-allnodes.example.com", "broadcasthost"),
]
ADDRESSES = [
    *("1.2.3.4", "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0X7F.0.0.1", "017700000001"),
    *("0177.0.0.1", "0", "0x0", "0x", "00", "4294967295", "4294967297", "16777216", "010.0.0.1"),
    *(
        "256.256.256.256",
        "1.2.3.4.5",
        "web.1",
        "web.0x7f",
        "web.example.08",
        "134744072.example.com",
        "0x08080808.example",
    ),
]
FINE = [
    *(
        "web",
        "web-1",
        "7",
        "16777215",
        "10.example.com",
        "1.2.3.4.example.com",
        "3com",
        "0x7g",
        "deadbeef",
        "f",
        "0b1.x",
    ),
    *("my-localhost", "a.localhost.example", "local", "ip6-web", "ip6", "1-2-3-4", "example.x1", "08"),
]


@pytest.mark.parametrize("hostname", ITSELF)
def test_what_every_machine_calls_itself_is_refused(hostname: str) -> None:
    assert refusal(hostname) == IsLocalhost(hostname)


@pytest.mark.parametrize("hostname", ADDRESSES)
def test_an_address_is_refused_in_any_notation(hostname: str) -> None:
    assert isinstance(refusal(hostname), IsAddress)


@pytest.mark.parametrize("hostname", FINE)
def test_other_names_with_such_parts_are_fine(hostname: str) -> None:
    assert refusal(hostname) is None


def test_nothing_that_is_accepted_is_an_address_to_the_c_library() -> None:
    chance = random.Random(4)
    notations = (
        str,
        hex,
        lambda number: f"0{number:o}",
        lambda number: f"0x{number:X}",
        lambda number: f"00{number:o}",
    )
    for _ in range(2000):
        parts = [chance.randrange(256) for _ in range(chance.randrange(4))]
        last = chance.randrange(256 ** (4 - len(parts)))
        hostname = ".".join(chance.choice(notations)(part) for part in [*parts, last])
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(hostname))
        except OSError:
            continue  # a 0 before an 8 or 9
        nobody = address in ipaddress.IPv4Network("0.0.0.0/8") and address != ipaddress.IPv4Address(0)
        assert isinstance(refusal(hostname), IsAddress) or (nobody and "." not in hostname), hostname


@pytest.mark.parametrize("hostname", ["localhost", "web.localhost", "127.1", "134744072.example.com"])
async def test_it_is_refused_wherever_a_hostname_can_be_given(cloud: Cloud, hostname: str) -> None:
    one = f"{SERVERS}{await cloud.create()}/"
    whole = {"name": "web", "hostname": hostname, "backups_enabled": False}
    for method, path, body in (
        ("POST", SERVERS, {"name": "web", **TINY, "hostname": hostname}),
        ("POST", f"{SERVERS}?dry_run=1", {"name": "web", **TINY, "hostname": hostname}),
        ("PUT", one, whole),
        ("PATCH", one, {"hostname": hostname}),
    ):
        answer = await cloud.ask(method, path, json=body)
        assert answer.status_code == 400, (method, answer.text)
        assert answer.json() == {"hostname": [str(refusal(hostname))]}


@pytest.mark.parametrize("name", ["localhost", "10.0.0.5"])
async def test_a_name_that_cannot_be_the_hostname_needs_one_beside_it(cloud: Cloud, name: str) -> None:
    answer = await cloud.post(SERVERS, {"name": name, **TINY})
    assert answer.status_code == 400
    assert answer.json()["name"] == [f"{refusal(name)} Or keep the name, and give a hostname beside it."]
    assert (await cloud.post(SERVERS, {"name": name, **TINY, "hostname": "web"})).status_code == 201
    assert (await cloud.get(f"{SERVERS}?name={name}")).json()["count"] == 1


async def test_a_server_that_has_such_a_hostname_from_before_can_still_be_changed(cloud: Cloud) -> None:
    server = await cloud.create()
    async with cloud.database.write() as tx:
        await change(tx, servers, server, hostname="localhost")
    body = {"name": "renamed", "hostname": "localhost", "backups_enabled": False}
    assert (await cloud.ask("PUT", f"{SERVERS}{server}/", json=body)).status_code == 200
    assert (await cloud.ask("PATCH", f"{SERVERS}{server}/", json={"hostname": "127.1"})).status_code == 400
