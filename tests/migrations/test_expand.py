"""From 0009 on a migration only adds: the release before works on with what it makes (docs/decisions/0031)."""

from itertools import pairwise

import pytest

from vpsd.migrations import shape

_FIRST = "0009"


@pytest.mark.parametrize("revision", [each for each in shape.released() if each >= _FIRST])
def test_the_release_before_works_on_with_a_migration(revision: str) -> None:
    steps = {later: shape.hurts(before, now) for (_, before), (later, now) in pairwise(shape.released().items())}
    assert not steps[revision]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ("servers: column name text, not null", ""),
        ("servers: column name text, not null", "servers: column name varchar(9), not null"),
        ("servers: column name text", "servers: column name text, not null"),
        ("", "servers: column price bigint, not null"),
        ("", "servers: unique (name)"),
        ("", "servers: unique index uq_servers_name (name)"),
        ("", "servers: refuses delete"),
    ],
)
def test_what_it_would_fail_at_is_seen(before: str, now: str) -> None:
    always = {"servers: column id identity, not null, key"}
    assert shape.hurts(frozenset({*always, before} - {""}), frozenset({*always, now} - {""}))


@pytest.mark.parametrize(
    "line",
    [
        "servers: column price bigint",
        "servers: column price bigint, not null, default 0",
        "servers: index ix_servers_name (name)",
        "servers: trigger servers_sum_insert",
        "prices: column amount bigint, not null",
        "prices: unique (amount)",
    ],
)
def test_what_does_not_concern_it_may_be_added(line: str) -> None:
    always = {"servers: column id identity, not null, key"}
    assert not shape.hurts(frozenset(always), frozenset({*always, line}))
