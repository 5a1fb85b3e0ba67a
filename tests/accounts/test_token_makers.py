"""Tokens say who made them, and take along what they made where that is asked for."""

import asyncio

from tests.api.tables import rows
from tests.cloud import Cloud
from vpsd.accounts import tokens
from vpsd.core.context import SYSTEM

TOKENS = "/api/v1/account/tokens/"
ME = "/api/v1/account/me/"


async def make(cloud: Cloud, name: str, who: str = "alice") -> int:
    """A token that another has made; its name is for `who=`."""
    made = await cloud.post(TOKENS, {"name": name, "permissions": ["*:*"]}, who=who)
    assert made.status_code == 201, made.text
    cloud.tokens[name] = made.json()["token"]
    token_id: int = made.json()["id"]
    return token_id


async def works(cloud: Cloud, *names: str) -> list[bool]:
    return [(await cloud.get(ME, who=name)).status_code == 200 for name in names]


async def test_a_token_says_who_made_it(cloud: Cloud) -> None:
    child = await make(cloud, "child")
    async with cloud.runtime.write(SYSTEM) as ctx:
        await tokens.add(ctx.in_account((await cloud.account()).id), "own")
    await make(cloud, "grandchild", "child")
    await cloud.ask("DELETE", f"{TOKENS}{child}/")
    listed = (await cloud.get(TOKENS)).json()["results"]
    assert {token["name"]: token["created_by"] for token in listed} == {
        "test": {"actor": "operator", "token": None},
        "own": {"actor": "vpsd", "token": None},
        "grandchild": {"actor": "token", "token": {"id": child, "name": "child"}},
    }


async def test_revoked_alone_a_token_leaves_those_that_it_made(cloud: Cloud) -> None:
    child = await make(cloud, "child")
    await make(cloud, "grandchild", "child")
    assert (await cloud.ask("DELETE", f"{TOKENS}{child}/")).status_code == 204
    assert await works(cloud, "alice", "child", "grandchild") == [True, False, True]


async def test_revoked_with_its_children_a_token_takes_their_children_along(cloud: Cloud) -> None:
    child = await make(cloud, "child")
    made = [child, await make(cloud, "grandchild", "child"), await make(cloud, "great-grandchild", "grandchild")]
    sibling = await make(cloud, "sibling")
    assert (await cloud.ask("DELETE", f"{TOKENS}{child}/?children=true")).status_code == 204
    assert await works(cloud, "alice", "child", "grandchild", "great-grandchild", "sibling") == [
        *(True, False, False, False, True)
    ]
    told = [event["target_id"] for event in await rows(cloud.database, "events") if event["action"] == "token.revoke"]
    assert told == made
    assert (await cloud.ask("DELETE", f"{TOKENS}{child}/?children=true")).status_code == 404
    assert (await cloud.ask("DELETE", f"{TOKENS}{sibling}/?children=perhaps")).status_code == 400


async def test_the_children_of_a_revoked_token_can_still_be_revoked_and_a_strangers_cannot(cloud: Cloud) -> None:
    child = await make(cloud, "child")
    await make(cloud, "grandchild", "child")
    await cloud.ask("DELETE", f"{TOKENS}{child}/")
    assert (await cloud.ask("DELETE", f"{TOKENS}{child}/?children=true", who="charlie")).status_code == 404
    assert await works(cloud, "grandchild") == [True]
    assert (await cloud.ask("DELETE", f"{TOKENS}{child}/?children=true")).status_code == 204
    assert await works(cloud, "grandchild") == [False]


async def test_a_child_that_is_being_made_meanwhile_does_not_get_away(cloud: Cloud) -> None:
    child = await make(cloud, "child")
    for turn in range(10):
        name = f"late-{turn}"
        answers = await asyncio.gather(
            cloud.post(TOKENS, {"name": name, "permissions": ["*:*"]}, who="child"),
            cloud.ask("DELETE", f"{TOKENS}{child}/?children=true"),
        )
        assert answers[1].status_code == 204
        if answers[0].status_code == 201:
            cloud.tokens[name] = answers[0].json()["token"]
            assert await works(cloud, name) == [False]
        child = await make(cloud, "child")
