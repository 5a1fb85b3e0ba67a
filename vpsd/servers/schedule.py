"""When a server's automatic backup is due, in UTC."""

from vpsd.core.units import DAY_MS, MINUTE_MS
from vpsd.settings import Settings


def next_backup_slot_ms(settings: Settings, server_uuid: str, after_ms: int) -> int:
    """The next moment for a server's daily backup: each day the same inside the window, spread by the server's uuid."""
    start_minute, length_minutes = settings.backup_window_minutes
    spread_ms = int(server_uuid.replace("-", ""), 16) % (length_minutes * MINUTE_MS)
    of_day_ms = start_minute * MINUTE_MS + spread_ms  # may lie in the day that follows
    day = (after_ms - of_day_ms) // DAY_MS
    return (day + 1) * DAY_MS + of_day_ms
