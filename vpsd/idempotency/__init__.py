"""Requests that may be sent twice and are executed once."""
