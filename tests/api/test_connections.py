"""Who gets in when many are there: caps in all and per address, and who makes room."""

import logging
import resource

import pytest

from vpsd.api.http.connections import Connections, raise_descriptor_limit
from vpsd.settings import Settings

THERE = "198.51.100.7"


class Member:
    """A connection that only says what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def give_up(self) -> None:
        self.asked.append("give up")

    def make_room(self) -> None:
        self.asked.append("make room")

    def look_at_writing(self, now: float) -> None:
        self.asked.append(f"look at {now}")


class Door:
    """Connections, and a time that only moves when it is told to."""

    def __init__(self, most: int = 1000, **settings: object) -> None:
        self.time = 0.0
        self.room = Connections(Settings(**settings), most=most, now=lambda: self.time)  # type: ignore[arg-type]

    def enter(self, peer: str = THERE, *, busy: bool = False) -> Member | None:
        """A new connection that waits for its client, or that vpsd works for; None where there is no room."""
        member = Member()
        if not self.room.admit(member, peer):
            return None
        if not busy:
            self.room.wait(member, 10)
        return member

    def fill(self, number: int, peer: str = THERE, *, busy: bool = False) -> list[Member]:
        found = [self.enter(peer, busy=busy) for _ in range(number)]
        assert None not in found
        return [member for member in found if member is not None]


def test_the_one_that_kept_vpsd_waiting_for_longest_makes_room() -> None:
    door = Door(32)
    busy, idle = door.fill(10, busy=True), door.fill(20)
    door.room.wait(idle[0], 10)  # it sent something
    newcomers = door.fill(3)
    assert [member.asked for member in idle] == [[], *[["make room"]] * 3, *[[]] * 16]
    assert not any(member.asked for member in [*busy, *newcomers])
    assert len(door.room) == 30


def test_who_is_worked_for_makes_no_room() -> None:
    door = Door(32)
    busy = door.fill(30, busy=True)
    assert door.enter() is None
    door.room.leave(busy[0])
    assert door.enter() is not None


def test_a_few_connections_are_kept_for_this_machine() -> None:
    door = Door(32)
    door.fill(30, busy=True)
    door.fill(2, "127.0.0.1", busy=True)
    assert door.enter("::1") is None


def test_a_proxy_on_this_machine_gets_none_of_them() -> None:
    door = Door(32, trusted_proxies="127.0.0.1")
    door.fill(30, "127.0.0.1", busy=True)
    assert door.enter("127.0.0.1") is None
    assert door.enter("::1") is not None


def test_an_address_makes_room_for_itself() -> None:
    door = Door(connections_per_address=3)
    first, others = door.fill(3), door.fill(3, "198.51.100.8")
    assert door.enter() is not None
    assert [member.asked for member in [*first, *others]] == [["make room"], *[[]] * 5]


def test_in_an_address_too_the_one_that_kept_vpsd_waiting_for_longest_makes_room() -> None:
    door = Door(connections_per_address=3)
    old = door.fill(3)
    door.time = 1
    door.room.wait(old[0], 10)  # it sent something
    assert door.enter() is not None
    assert [member.asked for member in old] == [[], ["make room"], []]


def test_an_address_of_which_all_are_busy_gets_no_more() -> None:
    door = Door(connections_per_address=3)
    door.fill(3, "2001:db8::1", busy=True)
    assert door.enter("2001:db8::2") is None  # of the same /64
    assert door.enter("2001:db8:0:1::1") is not None


def test_a_trusted_proxy_is_many_people() -> None:
    door = Door(connections_per_address=3, trusted_proxies="10.0.0.5")
    door.fill(20, "10.0.0.5", busy=True)


def test_nothing_is_remembered_of_those_that_left() -> None:
    door = Door(32)
    for member in [*door.fill(5), *door.fill(25, busy=True)]:
        door.room.stalled.add(member)
        door.room.leave(member)
        door.room.leave(member)  # once more does no harm
    assert len(door.room) == 0
    assert not any(vars(door.room)[name] for name in ("_turns", "_networks", "_of_network", "_told", "stalled"))


def test_who_takes_too_long_is_given_up() -> None:
    door = Door()
    (quick,), (slow,), (busy,) = door.fill(1), door.fill(1), door.fill(1, busy=True)
    door.time = 9.9
    door.room.sweep()
    door.room.wait(quick, 10)
    door.time = 10
    door.room.sweep()
    door.room.sweep()
    assert (quick.asked, slow.asked, busy.asked) == ([], ["give up"], [])


def test_hurrying_counts_the_time_that_has_gone_by() -> None:
    door = Door()
    (long_idle,) = door.fill(1)
    door.time = 5
    (new,) = door.fill(1)
    door.room.hurry(long_idle, 1)
    door.room.hurry(new, 1)
    door.room.sweep()
    assert (long_idle.asked, new.asked) == (["give up"], [])
    door.time = 6
    door.room.sweep()
    assert new.asked == ["give up"]


def test_a_full_house_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    door = Door(32)
    door.fill(30, busy=True)
    for _ in range(5):
        door.enter()
    door.time = 11
    door.enter("203.0.113.9")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.split("; see")[0] for line in said] == [
        f"no room for 1 connections, the last one from {THERE}: 30 are open",
        "no room for 5 connections, the last one from 203.0.113.9: 30 are open",
    ]


def test_only_so_many_are_told_that_there_is_no_room() -> None:
    door = Door(16)
    door.fill(15, busy=True)
    for _ in range(64):
        assert door.enter() is None
        assert door.room.may_tell
    assert door.enter() is None
    assert not door.room.may_tell


@pytest.mark.parametrize(
    ("limits", "connections_wanted", "raised", "most"),
    [
        ((1024, 4096), 1000, (1256, 4096), 1000),
        ((1024, 4096), 4096, (4096, 4096), 3840),
        ((1024, resource.RLIM_INFINITY), 4096, (4352, resource.RLIM_INFINITY), 4096),
        ((65536, 65536), 4096, (65536, 65536), 4096),
        ((resource.RLIM_INFINITY,) * 2, 4096, (resource.RLIM_INFINITY,) * 2, 4096),
        ((128, 128), 4096, (128, 128), 16),
    ],
)
def test_the_limit_of_descriptors_is_raised_as_far_as_needed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    limits: tuple[int, int],
    connections_wanted: int,
    raised: tuple[int, int],
    most: int,
) -> None:
    kept = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda _: kept[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: kept.append(pair))
    assert raise_descriptor_limit(connections_wanted) == most
    assert kept[-1] == raised
    assert bool(caplog.records) == (most < connections_wanted)


def test_who_got_no_room_makes_none() -> None:
    door = Door(16)
    door.fill(15, busy=True)
    refused = Member()
    assert not door.room.admit(refused, THERE)
    door.room.wait(refused, 2)  # it is being told
    assert door.enter() is None
    assert refused.asked == []
