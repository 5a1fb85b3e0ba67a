"""Hosts of servers, and their capacity."""
