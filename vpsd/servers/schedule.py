"""When a server's automatic backup is due, in UTC."""

from vpsd.settings import Settings

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS


def next_backup_slot_ms(settings: Settings, server_uuid: str, after_ms: int) -> int:
    """The next moment for a server's daily backup: each day the same inside the window, spread by the server's uuid."""
    start_minute, length_minutes = settings.backup_window_minutes
    spread_ms = int(server_uuid.replace("-", ""), 16) % (length_minutes * _MINUTE_MS)
    of_day_ms = start_minute * _MINUTE_MS + spread_ms  # may lie in the day that follows
    day = (after_ms - of_day_ms) // _DAY_MS
    return (day + 1) * _DAY_MS + of_day_ms
