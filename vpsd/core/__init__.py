"""Plumbing without opinions: database, clock, ids, secrets."""
