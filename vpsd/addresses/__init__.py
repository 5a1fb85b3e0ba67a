"""Addresses of servers: the pool and who holds what."""
