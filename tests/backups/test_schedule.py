"""When automatic backups are made, and how long they are kept."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpsd.backups import schedule
from vpsd.settings import Settings

DAY_MS = 86_400_000
UUIDS = st.uuids().map(str)
TIMES = st.integers(0, 4_000_000_000_000)


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


@given(UUIDS, TIMES)
def test_the_slot_comes_once_a_day_inside_the_window(uuid: str, now_ms: int) -> None:
    for window, inside in (
        ("03:00-05:00", {3, 4}),
        ("23:00-01:00", {23, 0}),
        ("00:00-23:59", set(range(24))),
    ):
        settings = Settings(backup_window=window)
        slot = schedule.next_slot_ms(settings, uuid, now_ms)
        assert now_ms < slot <= now_ms + DAY_MS
        assert datetime.fromtimestamp(slot / 1000, UTC).hour in inside
        assert schedule.next_slot_ms(settings, uuid, slot - 1) == slot
        assert schedule.next_slot_ms(settings, uuid, slot) == slot + DAY_MS


def test_servers_are_spread_over_the_window() -> None:
    uuids = [f"3f0c2a64-8d1e-4b57-9a3c-{number * 7_919_777:012x}" for number in range(1, 200)]
    slots = sorted(schedule.next_slot_ms(Settings(), uuid, 0) for uuid in uuids)
    thirds = [len([slot for slot in slots if slot // 2_400_000 == third]) for third in (4, 5, 6, 7)]
    assert len(set(slots)) == len(slots)
    assert min(thirds[1:3]) > 40


@pytest.mark.parametrize(
    ("created", "expires"),
    [
        ("2025-01-16 03:00", "2025-02-16 03:00"),  # the page's own example
        ("2025-01-31 03:00", "2025-02-28 03:00"),
        ("2024-01-31 03:00", "2024-02-29 03:00"),
        ("2025-12-31 23:59", "2026-01-31 23:59"),
    ],
)
def test_a_backup_is_kept_for_a_calendar_month(created: str, expires: str) -> None:
    assert text(schedule.expires_at_ms(Settings(), ms(created), [])) == expires


def kept(settings: Settings, created: str, *earlier: str) -> str:
    return text(schedule.expires_at_ms(settings, ms(created), [ms(one) for one in earlier]))


def test_days_weeks_and_months_are_kept_as_the_operator_says() -> None:
    settings = Settings(backup_keep_daily=7, backup_keep_weekly=4, backup_keep_monthly=6)
    assert kept(settings, "2025-01-15 03:00") == "2025-07-15 03:00"  # the first of its month
    assert kept(settings, "2025-01-16 03:00", "2025-01-15 03:00") == "2025-01-23 03:00"
    assert kept(settings, "2025-01-20 03:00", "2025-01-15 03:00") == "2025-02-17 03:00"  # a Monday: of a new week
    assert kept(settings, "2025-02-01 03:00", "2025-01-31 03:00") == "2025-08-01 03:00"
    assert kept(Settings(backup_keep_daily=3), "2025-01-15 03:00") == "2025-01-18 03:00"
    assert kept(Settings(backup_keep_weekly=1), "2025-01-16 03:00", "2025-01-15 03:00") == "2025-01-16 03:00"
