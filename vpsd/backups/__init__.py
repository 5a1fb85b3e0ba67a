"""Where the backups of servers' disks lie: outside the pool, verified, encrypted, and each a full one."""
