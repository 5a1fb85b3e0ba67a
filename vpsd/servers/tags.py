"""Tags of servers, as rows of key and value: `env:prod` is the value `prod` of the key `env`, `web` a key alone.

A label, as other APIs call a key with a value, is the same row.
"""

import msgspec
from sqlalchemy import bindparam, case, delete, insert, select

from vpsd.core.context import Ctx
from vpsd.core.db import Statement
from vpsd.core.faults import Faults
from vpsd.core.tables import json_lists
from vpsd.servers.faults import RepeatedTag
from vpsd.servers.models import server_tags, servers

_c = server_tags.c
_OWN = _c.account_id == bindparam("account_id")
_ADD = Statement(insert(server_tags), [column.name for column in _c])
_CLEAR = Statement(delete(server_tags).where(_OWN, _c.server_id == bindparam("server_id")))
_text = case((_c.value == "", _c.key), else_=_c.key + ":" + _c.value)
_of_server = _c.server_id == servers.c.id

TAGS = select(json_lists(_c.position, _c.key, _c.value)).where(_of_server).scalar_subquery()
"""A server's tags in a SELECT of servers; `tag_list` reads it."""

HAS_TAG = servers.c.id.in_(
    select(_c.server_id).where(_OWN, _c.key == bindparam("tag_key"), _c.value == bindparam("tag_value"))
)
TAG_LIKE = select(1).where(_of_server, _text.ilike(bindparam("q"), escape="\\")).exists()


def key_and_value(tag: str) -> tuple[str, str]:
    """A tag's two halves; the value is empty where there is none."""
    key, _, value = tag.partition(":")
    return (key, value) if key and value else (tag, "")


def tag_list(found: str) -> list[str]:
    """The tags that `TAGS` found, in their order."""
    rows = sorted(msgspec.json.decode(found, type=list[tuple[int, str, str]]))
    return [f"{key}:{value}" if value else key for _, key, value in rows]


def check_tags(tags: list[str], faults: Faults) -> None:
    """No tag stands twice."""
    for place, tag in enumerate(tags):
        if tag in tags[:place]:
            faults.add("tags", RepeatedTag(place + 1, tag))


async def set_tags(ctx: Ctx, server_id: int, tags: list[str]) -> None:
    """Give a server of the account these tags in place of those that it has."""
    await ctx.tx.run(_CLEAR, account_id=ctx.account_id, server_id=server_id)
    halves = enumerate(map(key_and_value, tags))
    rows = [
        {"server_id": server_id, "account_id": ctx.account_id, "position": place, "key": key, "value": value}
        for place, (key, value) in halves
    ]
    if rows:
        await ctx.tx.many(_ADD, rows)
