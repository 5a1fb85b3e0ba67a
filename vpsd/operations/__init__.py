"""The one row for slow work: job, lock, public progress and history."""
