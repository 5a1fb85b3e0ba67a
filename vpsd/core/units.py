"""Binary sizes in bytes, and spans of time in milliseconds."""

MIB = 1 << 20
GIB = 1 << 30

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
