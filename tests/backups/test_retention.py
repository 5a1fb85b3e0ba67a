"""How long automatic backups are kept."""

from datetime import UTC, datetime

import pytest

from vpsd.backups.retention import expires_at_ms
from vpsd.settings import Settings


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


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
    assert text(expires_at_ms(Settings(), ms(created), [])) == expires


def kept(settings: Settings, created: str, *earlier: str) -> str:
    return text(expires_at_ms(settings, ms(created), [ms(one) for one in earlier]))


def test_days_weeks_and_months_are_kept_as_the_operator_says() -> None:
    settings = Settings(backup_keep_daily=7, backup_keep_weekly=4, backup_keep_monthly=6)
    assert kept(settings, "2025-01-15 03:00") == "2025-07-15 03:00"  # the first of its month
    assert kept(settings, "2025-01-16 03:00", "2025-01-15 03:00") == "2025-01-23 03:00"
    assert kept(settings, "2025-01-20 03:00", "2025-01-15 03:00") == "2025-02-17 03:00"  # a Monday: of a new week
    assert kept(settings, "2025-02-01 03:00", "2025-01-31 03:00") == "2025-08-01 03:00"
    assert kept(Settings(backup_keep_daily=3), "2025-01-15 03:00") == "2025-01-18 03:00"
    assert kept(Settings(backup_keep_weekly=1), "2025-01-16 03:00", "2025-01-15 03:00") == "2025-01-16 03:00"
