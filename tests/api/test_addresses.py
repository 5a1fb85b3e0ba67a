"""Where requests come from and where answers point to, with and without proxies; forged headers change neither."""

import ipaddress
import random
from typing import Any

import httpx
import msgspec
import pytest

from tests.api.test_limits import Caller
from tests.cloud import TINY, Cloud
from vpsd.api.http.addresses import network_of, read_address

SERVERS = "/api/v1/servers/"
PROXY = "10.0.0.5"
FORWARDED = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "vps.example.com", "X-Forwarded-For": "203.0.113.9"}


def http(cloud: Cloud, peer: str = PROXY, base_url: str = "http://vpsd.test", **settings: Any) -> httpx.AsyncClient:
    """A client whose requests come from that peer."""
    transport = httpx.ASGITransport(cloud.app(**settings), client=(peer, 4711))
    headers = {"Authorization": f"Bearer {cloud.tokens['alice']}"}
    return httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers)


async def following(client: httpx.AsyncClient, path: str = "", **headers: str) -> str:
    """Where the next of the first pages leads, up to the query."""
    sent = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = await client.get(f"{path}/api/v1/servers/?page_size=1", headers=sent)
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["next"]
    return found.partition("?")[0]


@pytest.fixture
async def servers(cloud: Cloud) -> Cloud:
    """Some, so that there is a next page."""
    for number in range(3):
        await cloud.create(f"web-{number}")
    return cloud


async def test_the_public_address_goes_before_whatever_a_request_says(servers: Cloud) -> None:
    for url in ("https://vps.example.com", "https://vps.example.com/", "http://192.0.2.1:8080/cloud/one/"):
        client = http(servers, public_url=url, trusted_proxies=PROXY)
        for headers in ({}, FORWARDED, {"Host": "evil.example", "X-Forwarded-Prefix": "/evil"}):
            assert await following(client, **headers) == f"{url.rstrip('/')}{SERVERS}"


async def test_a_trusted_proxy_tells_scheme_host_and_prefix(servers: Cloud) -> None:
    client = http(servers, trusted_proxies=f"192.0.2.0/24, {PROXY}")
    assert await following(client, **FORWARDED) == f"https://vps.example.com{SERVERS}"
    for changed, base in (
        ({"X-Forwarded-Proto": "http", "X-Forwarded-Host": "vps.example.com:8080"}, "http://vps.example.com:8080"),
        ({"X-Forwarded-Host": "vps.example.com:443"}, "https://vps.example.com"),
        ({"X-Forwarded-Host": "[2001:db8::1]:8443"}, "https://[2001:db8::1]:8443"),
        ({"X-Forwarded-Prefix": "/cloud"}, "https://vps.example.com/cloud"),
        ({"X-Forwarded-Prefix": "/cloud/"}, "https://vps.example.com/cloud"),
        ({"X-Forwarded-Prefix": "/"}, "https://vps.example.com"),
        # What a client sent along stands before what the proxy says itself.
        ({"X-Forwarded-Host": "evil.example, vps.example.com"}, "https://vps.example.com"),
        ({"X-Forwarded-Proto": "gopher,https"}, "https://vps.example.com"),
    ):
        assert await following(client, **{**FORWARDED, **changed}) == f"{base}{SERVERS}", changed


async def test_a_proxy_that_tells_half_of_it_gets_relative_addresses(servers: Cloud) -> None:
    client = http(servers, trusted_proxies=PROXY)
    for headers, base in (
        ({"X-Forwarded-For": "203.0.113.9"}, ""),
        ({"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Prefix": "/cloud"}, "/cloud"),
        ({**FORWARDED, "X-Forwarded-Proto": ""}, ""),
        ({**FORWARDED, "X-Forwarded-Host": ""}, ""),
    ):
        assert await following(client, **headers) == f"{base}{SERVERS}", headers
        described = (await client.get("/api/v1/openapi.json", headers=headers)).json()
        assert described["servers"] == [{"url": base or "/"}]


async def test_nonsense_of_a_proxy_is_not_passed_on(servers: Cloud) -> None:
    client = http(servers, trusted_proxies=PROXY)
    hosts = ("a b", "evil.example/x", "me@evil.example", "evil.example?", "a:99x", "é", '"', "[::1", "-", "a:123456")
    for host in hosts:
        assert await following(client, **{**FORWARDED, "X-Forwarded-Host": host}) == SERVERS, host
    for prefix in ("cloud", "//evil.example", "/a b", "/..", "/a/../b", "/é", "/a?b", "https://evil.example"):
        assert await following(client, **{**FORWARDED, "X-Forwarded-Prefix": prefix}) == SERVERS, prefix


async def test_who_is_no_trusted_proxy_says_what_they_like_in_vain(servers: Cloud) -> None:
    forged = {**FORWARDED, "X-Forwarded-Prefix": "/evil"}
    for client in (http(servers, "203.0.113.9", trusted_proxies=PROXY), http(servers)):
        assert await following(client, **forged) == f"http://vpsd.test{SERVERS}"


async def test_a_host_counts_where_it_names_the_address_that_was_reached(servers: Cloud) -> None:
    for reached, host, base in (
        ("http://192.0.2.7:8000", "192.0.2.7:8000", "http://192.0.2.7:8000"),
        ("http://192.0.2.7:8000", "192.0.2.7", ""),
        ("http://192.0.2.7:8000", "192.0.2.8:8000", ""),
        ("http://192.0.2.7", "192.0.2.7:80", "http://192.0.2.7:80"),
        ("http://192.0.2.7:8000", "evil.example", ""),
        ("http://192.0.2.7:8000", "evil.example:8000", ""),
        ("http://192.0.2.7:8000", "localhost:8000", ""),
        ("http://127.0.0.1:8000", "localhost:8000", "http://localhost:8000"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://[2001:db8::7]:8000", "[2001:DB8:0::7]:8000", "http://[2001:DB8:0::7]:8000"),
        ("http://[2001:db8::7]:8000", "[2001:db8::8]:8000", ""),
        ("http://[::ffff:192.0.2.7]:8000", "192.0.2.7:8000", "http://192.0.2.7:8000"),
        ("http://192.0.2.7:8000", "vpsd.internal:8000", "http://vpsd.internal:8000"),
        ("http://192.0.2.7:8000", "vpsd.internal", ""),
    ):
        client = http(servers, base_url=reached, listen="vpsd.internal:8000")
        assert await following(client, Host=host) == f"{base}{SERVERS}", (reached, host)


async def test_a_wildcard_that_vpsd_listens_on_is_no_address_to_go_to(servers: Cloud) -> None:
    for listen, host in (("0.0.0.0:8000", "0.0.0.0:8000"), ("[::]:8000", "[::]:8000")):
        client = http(servers, base_url="http://192.0.2.7:8000", listen=listen)
        assert await following(client, Host=host) == SERVERS
        assert await following(client, Host="192.0.2.7:8000") == f"http://192.0.2.7:8000{SERVERS}"


async def test_no_forged_host_comes_back_in_any_answer(servers: Cloud) -> None:
    client = http(servers, "203.0.113.9")
    client.follow_redirects = False
    forged = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Original-Host": "evil.example"}
    forged |= {"Forwarded": "host=evil.example", "X-Forwarded-Server": "evil.example", "X-Host": "evil.example"}
    for method, path in (
        *(("GET", path) for path in (SERVERS, SERVERS.rstrip("/"), f"{SERVERS}?page=2&page_size=1", "/nowhere", "//x")),
        *(("GET", path) for path in ("/api/v1/openapi.json", "/health", f"{SERVERS}1", f"{SERVERS}99/")),
        *(("POST", f"{SERVERS}1/stop"), ("OPTIONS", SERVERS), ("DELETE", SERVERS)),
    ):
        answer = await client.request(method, path, headers=forged)
        assert not answer.is_redirect, path
        assert "evil" not in answer.text + str(answer.headers), path


async def test_a_relative_next_is_followed_like_any_other(servers: Cloud) -> None:
    client = http(servers)
    page = (await client.get(f"{SERVERS}?page_size=2", headers={"Host": "evil.example"})).json()
    assert page["next"].startswith(f"{SERVERS}?page_size=2&cursor=")
    assert [server["id"] for server in (await client.get(page["next"])).json()["results"]] == [3]


@pytest.mark.parametrize("by", ["setting", "header"])
async def test_a_prefix_works_whether_the_proxy_takes_it_off_or_not(servers: Cloud, by: str) -> None:
    headers = {**FORWARDED, "X-Forwarded-Prefix": "/cloud"} if by == "header" else {}
    settings = {"trusted_proxies": PROXY} if by == "header" else {"public_url": "https://vps.example.com/cloud"}
    client = http(servers, **settings)
    for prefix in ("", "/cloud"):
        assert await following(client, prefix, **headers) == f"https://vps.example.com/cloud{SERVERS}"
        assert (await client.get(f"{prefix}/health", headers=headers)).status_code == 200
        described = (await client.get(f"{prefix}/api/v1/openapi.json", headers=headers)).json()
        assert described["servers"] == [{"url": "https://vps.example.com/cloud"}]
    assert (await client.get("/cloudy/api/v1/servers/", headers=headers)).status_code == 404
    assert (await client.get("/other/api/v1/servers/", headers=headers)).status_code == 404


async def test_a_prefix_may_look_like_a_part_of_a_path(servers: Cloud) -> None:
    client = http(servers, public_url="https://example.com/api")
    for prefix in ("", "/api"):
        assert await following(client, prefix) == f"https://example.com/api{SERVERS}"


async def test_without_a_prefix_the_description_names_the_host_alone(servers: Cloud) -> None:
    client = http(servers, public_url="https://vps.example.com")
    assert msgspec.json.decode((await client.get("/api/v1/openapi.json")).content)["servers"] == [
        {"url": "https://vps.example.com"}
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:567", "192.0.2.1"),
        ("192.0.2.1:", "192.0.2.1"),
        (' "192.0.2.1:567" ', "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ('"[2001:db8::1]"', "2001:db8::1"),
        ('"[2001:db8::1]:443"', "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:1", "fe80::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("192.0.2.256", None),
        ("192.0.2", None),
        ("192.0.2.1:http", None),
        ("[2001:db8::1", None),
        ("[2001:db8::1]443", None),
        ("[]", None),
        ("localhost", None),
        ("192.0.2.1, 192.0.2.2", None),
    ],
)
def test_an_address_is_read_however_a_proxy_writes_it(text: str, address: str | None) -> None:
    found = read_address(text)
    assert (None if found is None else str(found)) == address


def test_limits_count_an_ipv6_64_as_one_and_an_ipv4_address_as_itself() -> None:
    chance = random.Random(7)
    for _ in range(50):
        network = ipaddress.IPv6Network((chance.getrandbits(128) & ~(2**64 - 1), 64))
        if network.network_address.ipv4_mapped is None:
            assert network_of(network[chance.getrandbits(64)]) == str(network)
        address = ipaddress.IPv4Address(chance.getrandbits(32))
        assert network_of(address) == str(address)


async def recorded(cloud: Cloud, peer: str, forwarded: list[str] | None, proxies: str = f"{PROXY},192.0.2.0/24") -> str:
    """The address that an event remembers of a request."""
    client = http(cloud, peer, trusted_proxies=proxies)
    headers = [*client.headers.items(), *(("X-Forwarded-For", value) for value in forwarded or [])]
    answer = await client.post(SERVERS, json={"name": "web", **TINY}, headers=headers)
    assert answer.status_code == 201, answer.text
    found: str = (await cloud.get("/api/v1/account/events/")).json()["results"][0]["address"]
    return found


async def test_the_last_address_that_no_trusted_proxy_vouches_for_is_the_senders(cloud: Cloud) -> None:
    for forwarded, address in (
        (None, PROXY),
        ([""], PROXY),
        ([", ,"], PROXY),
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["203.0.113.9,"], "203.0.113.9"),
        ([" , 203.0.113.9 ,, "], "203.0.113.9"),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (['"[2001:db8::1]"'], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # the first is what the sender claims
        (["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, 192.0.2.1"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9, 192.0.2.1, 192.0.2.2"], "203.0.113.9"),
        (["192.0.2.1, 192.0.2.2"], "192.0.2.1"),
        (["unknown"], PROXY),
        (["198.51.100.1, unknown"], PROXY),
        (["203.0.113.9, nonsense, 192.0.2.1"], "192.0.2.1"),
        (["a" * 5000], PROXY),
        (["\x00"], PROXY),
    ):
        assert await recorded(cloud, PROXY, forwarded) == address, forwarded


async def test_a_stranger_cannot_choose_an_address(cloud: Cloud) -> None:
    assert await recorded(cloud, "203.0.113.66", ["198.51.100.1"]) == "203.0.113.66"
    assert await recorded(cloud, PROXY, ["198.51.100.1"], proxies="") == PROXY
    assert await recorded(cloud, f"::ffff:{PROXY}", ["198.51.100.1"]) == "198.51.100.1"
    assert await recorded(cloud, PROXY, ["198.51.100.1"], proxies=f"::ffff:{PROXY}") == "198.51.100.1"


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("203.0.113.9", "::ffff:203.0.113.9", True),
        ("203.0.113.9", "203.0.113.10", False),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.10", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
async def test_who_shares_a_network_shares_its_limits(cloud: Cloud, first: str, second: str, alike: bool) -> None:
    for settings in ({"address_rate_limit": 1}, {"login_failures": 1}):
        app = cloud.app(**settings)
        assert await Caller(cloud, app, first).times(1, "vps_wrong") == [401]
        assert await Caller(cloud, app, second).times(1, "vps_wrong") == [429 if alike else 401]
