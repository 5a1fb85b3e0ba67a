"""Where the backups of servers' disks lie: outside the pool, checked, sealed, and each a full one."""
