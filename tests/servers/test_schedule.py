"""When automatic backups are made."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from vpsd.servers.schedule import next_backup_slot_ms
from vpsd.settings import Settings

DAY_MS = 86_400_000
UUIDS = st.uuids().map(str)
TIMES = st.integers(0, 4_000_000_000_000)


@given(UUIDS, TIMES)
def test_the_slot_comes_once_a_day_inside_the_window(uuid: str, now_ms: int) -> None:
    for window, inside in (
        ("03:00-05:00", {3, 4}),
        ("23:00-01:00", {23, 0}),
        ("00:00-23:59", set(range(24))),
    ):
        settings = Settings(backup_window=window)
        slot = next_backup_slot_ms(settings, uuid, now_ms)
        assert now_ms < slot <= now_ms + DAY_MS
        assert datetime.fromtimestamp(slot / 1000, UTC).hour in inside
        assert next_backup_slot_ms(settings, uuid, slot - 1) == slot
        assert next_backup_slot_ms(settings, uuid, slot) == slot + DAY_MS


def test_servers_are_spread_over_the_window() -> None:
    uuids = [f"3f0c2a64-8d1e-4b57-9a3c-{number * 7_919_777:012x}" for number in range(1, 200)]
    slots = sorted(next_backup_slot_ms(Settings(), uuid, 0) for uuid in uuids)
    thirds = [len([slot for slot in slots if slot // 2_400_000 == third]) for third in (4, 5, 6, 7)]
    assert len(set(slots)) == len(slots)
    assert min(thirds[1:3]) > 40
