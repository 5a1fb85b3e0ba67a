"""Requests that may be sent more than once and are executed once."""
