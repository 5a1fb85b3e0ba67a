"""The heart: servers, what may happen to them, and how it is done."""
