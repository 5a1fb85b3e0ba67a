"""Public keys that customers log in with."""
