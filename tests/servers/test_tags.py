"""Tags as rows: what they were, they stay, and a filter finds them by an index."""

import pytest

from tests.api.tables import rows
from tests.cloud import Cloud
from tests.explain import explain
from vpsd.servers import listing, tags

SERVERS = "/api/v1/servers/"


@pytest.mark.parametrize(
    ("tag", "halves"),
    [
        ("env:prod", ("env", "prod")),
        ("a:b:c", ("a", "b:c")),
        ("web", ("web", "")),
        ("a:", ("a:", "")),
        ("a::", ("a", ":")),
        ("k8s.io_x-y", ("k8s.io_x-y", "")),
    ],
)
async def test_a_tag_is_a_key_with_its_value_and_comes_back_as_it_was(
    cloud: Cloud, tag: str, halves: tuple[str, str]
) -> None:
    server_id = await cloud.create(tags=["first", tag])
    stored = [(row["key"], row["value"]) for row in await rows(cloud.database, "server_tags")]
    assert stored == [("first", ""), halves]
    assert (await cloud.get(f"{SERVERS}{server_id}/")).json()["tags"] == ["first", tag]
    assert (await cloud.get(f"{SERVERS}?tag={tag}")).json()["count"] == 1


async def test_a_key_that_ends_like_a_value_is_not_taken_for_it(cloud: Cloud) -> None:
    await cloud.create(tags=["env", "env:prod"])
    for query, count in (("tag=env", 1), ("tag=env:prod", 1), ("tag=prod", 0), ("q=v:pr", 1), ("q=env:p", 1)):
        assert (await cloud.get(f"{SERVERS}?{query}")).json()["count"] == count, query


async def test_labels_that_another_api_has_set_are_shown_as_tags(cloud: Cloud) -> None:
    server_id = await cloud.create()
    label = {"key": "csi.example.com/Location", "value": "FSN1", "position": 0}
    account = await cloud.account()
    async with cloud.database.write() as tx:
        await tx.many(tags._ADD, [{"server_id": server_id, "account_id": account.id, **label}])
    assert (await cloud.get(f"{SERVERS}{server_id}/")).json()["tags"] == ["csi.example.com/Location:FSN1"]


async def test_the_filter_by_tag_goes_by_the_index(cloud: Cloud) -> None:
    server_id, account = await cloud.create(), await cloud.account()
    tag = {"server_id": server_id, "account_id": account.id}
    async with cloud.database.write() as tx:
        await tx.many(tags._ADD, [{**tag, "position": n, "key": f"k{n}", "value": "x"} for n in range(2000)])
    for statement in (listing._count(("tag",)), listing._page(("tag",), "id", onwards=False)):
        given = {"account_id": account.id, "tag_key": "k7", "tag_value": "x", "limit": 10, "offset": 0}
        plan = await explain(cloud.database, statement, given, "server_tags")
        assert "ix_server_tags_account_key_value" in plan
