"""Placement: a pure function, by what must hold for all hosts and wishes, and by a few that tell what it prefers."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from vpsd.catalog.models import Plan
from vpsd.hosts.placement import RESOURCES, Reason, Refusal, Room, Wish, lacks, place, refusal
from vpsd.settings import Settings

PLAN = Plan(4, "Nano VPS", "nano", 1, 256, 2, 256, 2_000_000, None, "", True)
LARGER = msgspec.structs.replace(PLAN, id=3, vcpus=2, memory_mb=512)
SETTINGS = Settings(vcpu_overcommit=2.0, memory_overcommit=1.0, storage_overcommit=1.0)
EMPTY = Room(1, "one", None, "enabled", "ok", None, None, None, 4, 4096, 100, 100 * 1024, 0, 0, 0)


def room(**changes: Any) -> Room:
    return msgspec.structs.replace(EMPTY, **changes)


def exactly(**less: int) -> Room:
    """A host that has room for one PLAN to the last bit, less something."""
    free = {"vcpus": 1, "memory_mb": 256, "storage_gb": 2}
    return room(
        used_vcpus=8 - free["vcpus"] + less.get("vcpus", 0),
        used_memory_mb=4096 - free["memory_mb"] + less.get("memory_mb", 0),
        used_storage_gb=100 - free["storage_gb"] + less.get("storage_gb", 0),
    )


def reasons(*rooms: Room, **wish: Any) -> list[Reason]:
    found = place(rooms, Wish(PLAN, **wish), SETTINGS)
    assert not isinstance(found, Room)
    return [refused.reason for refused in found]


def chosen(*rooms: Room, **wish: Any) -> int:
    found = place(rooms, Wish(PLAN, **wish), SETTINGS)
    assert isinstance(found, Room), found
    return found.id


def test_nothing_is_lacking_where_it_fits_to_the_last_bit() -> None:
    assert lacks(exactly(), Wish(PLAN), SETTINGS) == []


def test_what_is_too_little_is_named_and_nothing_else() -> None:
    for name in RESOURCES:
        assert place([exactly(**{name: 1})], Wish(PLAN), SETTINGS) == [Refusal("one", Reason.TOO_LITTLE, (name,))]


def test_what_is_not_known_is_not_lacking() -> None:
    unknown = room(cpus=None, memory_mb=None, storage_gb=None, storage_free_mb=None, used_memory_mb=1 << 40)
    assert chosen(unknown) == 1


def test_what_a_server_gives_back_is_not_asked_for_twice() -> None:
    assert lacks(exactly(storage_gb=2), Wish(LARGER, instead_of=PLAN), SETTINGS) == []
    assert lacks(exactly(vcpus=1, memory_mb=1), Wish(LARGER, instead_of=PLAN), SETTINGS) == ["vcpus", "memory_mb"]
    full = room(used_vcpus=99, used_memory_mb=9999, used_storage_gb=999)
    assert lacks(full, Wish(PLAN, instead_of=LARGER), SETTINGS) == []  # smaller is always possible


def test_a_host_of_another_location_is_no_host_for_it_and_one_without_serves_all() -> None:
    assert reasons(room(location="eu"), location="us") == [Reason.ELSEWHERE]
    assert chosen(room(location="us"), location="us") == 1
    assert chosen(room(location=None), location="us") == 1


def test_hosts_that_are_not_to_be_used_are_not() -> None:
    for state in ("disabled", "fenced"):
        assert reasons(room(state=state)) == [Reason.NOT_ENABLED]
    assert reasons(room(health="unreachable")) == [Reason.UNREACHABLE]
    assert chosen(room(health="connecting")) == 1
    assert reasons(room(storage_free_mb=5119)) == [Reason.STORAGE_FULL]
    assert reasons(room(), apart_from=frozenset({1})) == [Reason.APART]


def test_what_waiting_does_not_help_against_is_said_before_what_it_does() -> None:
    worst = room(location="eu", state="disabled", health="unreachable", storage_free_mb=0, used_vcpus=8)
    assert reasons(worst, location="us") == [Reason.ELSEWHERE]
    assert reasons(worst) == [Reason.NOT_ENABLED]
    assert reasons(room(health="unreachable", storage_free_mb=0, used_vcpus=8)) == [Reason.TOO_LITTLE]


def test_an_accounts_servers_are_spread_before_hosts_are_filled_evenly() -> None:
    full, empty = room(id=1, used_vcpus=7), room(id=2)
    assert chosen(full, empty) == 2
    assert chosen(full, empty, own={2: 1}) == 1
    assert chosen(full, empty, own={1: 2, 2: 1}) == 2


def test_the_scarcest_resource_decides_and_then_the_oldest_host() -> None:
    little_memory, many_vcpus = room(id=1, used_memory_mb=3000), room(id=2, used_vcpus=4)
    assert chosen(little_memory, many_vcpus) == 2
    assert chosen(room(id=3), room(id=2)) == 2


def test_a_hosts_own_ratios_count_before_the_settings() -> None:
    assert reasons(room(used_vcpus=8)) == [Reason.TOO_LITTLE]
    assert chosen(room(used_vcpus=8, cpu_ratio=4.0)) == 1


ROOMS = st.builds(
    Room,
    id=st.integers(1, 5),
    name=st.just("host"),
    location=st.sampled_from([None, "us", "eu"]),
    state=st.sampled_from(["enabled", "disabled", "fenced"]),
    health=st.sampled_from(["connecting", "ok", "unreachable"]),
    cpu_ratio=st.sampled_from([None, 0.5, 1.0]),
    memory_ratio=st.none(),
    storage_ratio=st.none(),
    cpus=st.none() | st.integers(0, 4),
    memory_mb=st.none() | st.integers(0, 1024),
    storage_gb=st.none() | st.integers(0, 8),
    storage_free_mb=st.none() | st.integers(0, 2048),
    used_vcpus=st.integers(0, 8),
    used_memory_mb=st.integers(0, 1024),
    used_storage_gb=st.integers(0, 8),
)
WISHES = st.builds(
    Wish,
    plan=st.sampled_from([PLAN, LARGER]),
    location=st.sampled_from([None, "us", "eu"]),
    own=st.dictionaries(st.integers(1, 5), st.integers(1, 3)),
    apart_from=st.frozensets(st.integers(1, 5), max_size=2),
)


@given(st.lists(ROOMS, unique_by=lambda one: one.id), WISHES)
def test_whatever_is_wished_for_it_is_right_or_says_why_not(rooms: list[Room], wish: Wish) -> None:
    found = place(rooms, wish, SETTINGS)
    if not isinstance(found, Room):
        assert len(found) == len(rooms)
        assert all(refusal(one, wish, SETTINGS) is not None for one in rooms)
        return
    limits = found.limits(SETTINGS)
    for name in RESOURCES:
        limit = limits[name]
        assert limit is None or found.used()[name] + getattr(wish.plan, name) <= limit
    assert (found.state, found.health != "unreachable", found.id in wish.apart_from) == ("enabled", True, False)
    assert wish.location is None or found.location in (None, wish.location)
    others = [one for one in rooms if refusal(one, wish, SETTINGS) is None]
    assert wish.own.get(found.id, 0) == min(wish.own.get(one.id, 0) for one in others)
    assert place(rooms[::-1], wish, SETTINGS) == found  # whatever the order


def test_no_host_at_all_is_no_reason() -> None:
    assert place([], Wish(PLAN), SETTINGS) == []
