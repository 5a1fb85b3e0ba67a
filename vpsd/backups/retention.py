"""How long automatic backups are kept. All in UTC."""

import calendar
from datetime import UTC, datetime, timedelta

from vpsd.settings import Settings


def expires_at_ms(settings: Settings, created_at_ms: int, earlier_ms: list[int]) -> int:
    """Until when an automatic backup is kept; `earlier_ms` are the times of the server's other ones that are kept.

    One calendar month, unless the operator has set numbers: n days, for the first of a week (ISO 8601) n weeks, for the
    first of a month n months, whichever is longest.
    """
    created = _utc(created_at_ms)
    daily, weekly, monthly = settings.backup_keep_daily, settings.backup_keep_weekly, settings.backup_keep_monthly
    if not (daily or weekly or monthly):
        return _ms(_months_later(created, 1))
    earlier = [_utc(at_ms) for at_ms in earlier_ms]
    ends = [created + timedelta(days=daily)]
    if weekly and all(one.isocalendar()[:2] != created.isocalendar()[:2] for one in earlier):
        ends.append(created + timedelta(weeks=weekly))
    if monthly and all((one.year, one.month) != (created.year, created.month) for one in earlier):
        ends.append(_months_later(created, monthly))
    return _ms(max(ends))


def _months_later(at: datetime, months: int) -> datetime:
    """The same day and time some months on; the month's last day where it has no such day."""
    year, month = divmod(at.month - 1 + months, 12)
    day = min(at.day, calendar.monthrange(at.year + year, month + 1)[1])
    return at.replace(year=at.year + year, month=month + 1, day=day)


def _utc(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)


def _ms(at: datetime) -> int:
    return round(at.timestamp()) * 1000
