"""Networks of servers: so far the address pool, and who holds what of it."""
