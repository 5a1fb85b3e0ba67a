"""Networks of servers: so far, the address pool."""
