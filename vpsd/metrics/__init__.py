"""Measurements of servers: the latest sample, and the transfer of each month."""
