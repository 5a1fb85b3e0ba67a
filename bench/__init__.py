"""Measurements: how vpsd is timed, and what the README quotes."""
