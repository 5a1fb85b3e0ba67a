"""How many tokens, keys and open operations an account may have, also where two requests want the last one at once."""

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.cloud import TINY, Cloud
from vpsd.accounts import tokens
from vpsd.lifecycle import Command
from vpsd.servers import commands

SERVERS, KEYS, TOKENS = "/api/v1/servers/", "/api/v1/ssh-keys/", "/api/v1/account/tokens/"


def public_key(comment: str = "") -> str:
    raw = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    blob = b"".join(struct.pack(">I", len(field)) + field for field in (b"ssh-ed25519", raw))
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}".strip()


PUBLIC_KEYS = iter([public_key() for _ in range(60)])


async def add_key(cloud: Cloud, who: str = "alice") -> httpx.Response:
    return await cloud.post(KEYS, {"name": "k", "public_key": next(PUBLIC_KEYS)}, who=who)


async def add_token(cloud: Cloud, who: str = "alice") -> httpx.Response:
    return await cloud.post(TOKENS, {"name": "t", "permissions": ["servers:read"]}, who=who)


async def add_server(cloud: Cloud, who: str = "alice") -> httpx.Response:
    return await cloud.post(SERVERS, {"name": "web", **TINY}, who=who)


async def ready_connections(cloud: Cloud) -> None:
    """Have PostgreSQL's pool as full as it gets: what follows at once then really is at once."""
    await asyncio.gather(*(cloud.get(KEYS) for _ in range(10)))


Add = Callable[..., Awaitable[httpx.Response]]


@pytest.mark.parametrize(
    ("add", "setting", "limit", "status", "said"),
    [
        (add_key, "ssh_keys_per_account", 2, 403, "An account may have 2 SSH keys. Delete one"),
        (add_token, "tokens_per_account", 3, 403, "An account may have 3 valid tokens. Revoke one"),
        (add_server, "operations_per_account", 2, 429, "2 operations of the account are open, and no more may be."),
    ],
)
async def test_of_two_that_want_the_last_place_at_once_one_gets_it(
    cloud: Cloud, add: Add, setting: str, limit: int, status: int, said: str
) -> None:
    cloud.set(**{setting: limit})
    assert (await add(cloud)).status_code == 201
    await ready_connections(cloud)
    answers = await asyncio.gather(*(add(cloud) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201, *[status] * 7]
    refused = next(answer for answer in answers if answer.status_code == status)
    assert refused.json()["detail"].startswith(said)
    assert (await add(cloud, "charlie")).status_code == 201
    if status == 429:
        assert int(refused.headers["Retry-After"]) > 0


async def test_of_commands_on_several_servers_at_once_no_more_are_taken_than_may_be_open(cloud: Cloud) -> None:
    made = [await cloud.have_server(f"web-{number}") for number in range(5)]
    cloud.set(operations_per_account=2)
    await ready_connections(cloud)
    answers = await asyncio.gather(*(cloud.post(f"{SERVERS}{server}/stop/") for server in made))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]


async def test_a_key_that_is_deleted_and_a_token_that_is_revoked_or_ends_make_room(cloud: Cloud) -> None:
    cloud.set(ssh_keys_per_account=1, tokens_per_account=2)
    key = (await add_key(cloud)).json()["id"]
    assert (await add_key(cloud)).status_code == 403
    await cloud.ask("DELETE", f"{KEYS}{key}/")
    assert (await add_key(cloud)).status_code == 201
    token = (await add_token(cloud)).json()["id"]
    assert (await add_token(cloud)).status_code == 403
    await cloud.ask("DELETE", f"{TOKENS}{token}/")
    brief = {"name": "brief", "permissions": ["servers:read"], "expires_in_days": 1}
    assert (await cloud.post(TOKENS, brief)).status_code == 201
    assert (await add_token(cloud)).status_code == 403
    cloud.clock.advance(86_400)
    assert (await add_token(cloud)).status_code == 201


async def test_the_operator_may_give_an_account_more_tokens(cloud: Cloud) -> None:
    cloud.set(tokens_per_account=1)
    async with cloud.writing("alice") as ctx:
        await tokens.add(ctx, "another")


async def test_every_command_counts_and_a_delete_is_never_refused(cloud: Cloud) -> None:
    web, other = await cloud.have_server("web"), await cloud.have_server("other")
    cloud.set(operations_per_account=1)
    assert (await cloud.post(f"{SERVERS}{web}/stop/")).status_code == 200
    for path, body in (
        (f"{SERVERS}{other}/stop/", None),
        (f"{SERVERS}{other}/reboot/", None),
        (f"{SERVERS}{other}/rebuild/", {"os_id": 3}),
        (f"{SERVERS}{other}/resize/", {"plan_id": 3}),
        (f"{SERVERS}{other}/backup/", None),
        (SERVERS, {"name": "third", **TINY}),
    ):
        answer = await cloud.post(path, body)
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests"), path
    assert (await cloud.ask("DELETE", f"{SERVERS}{other}/")).status_code == 204
    await cloud.settle()
    assert (await cloud.post(f"{SERVERS}{web}/start/")).status_code == 200


async def test_what_the_operator_and_vpsd_do_is_not_limited(cloud: Cloud) -> None:
    web, other = await cloud.have_server("web"), await cloud.have_server("other")
    cloud.set(operations_per_account=1)
    assert (await cloud.post(f"{SERVERS}{web}/stop/")).status_code == 200
    async with cloud.writing("alice") as ctx:
        await commands.run_command(ctx, other, Command.STOP)


async def test_a_keys_comment_has_a_length(cloud: Cloud) -> None:
    answer = await cloud.post(KEYS, {"name": "k", "public_key": public_key("c" * 256)})
    assert answer.json() == {
        "public_key": ["The comment after the key has 256 characters; 255 are the limit. Shorten it, or leave it out."]
    }
    assert (await cloud.post(KEYS, {"name": "k", "public_key": public_key("c" * 255)})).status_code == 201
