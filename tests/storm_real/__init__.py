"""Storms over real processes: APIs, workers, PostgreSQL and libvirtds are killed, stopped, cut off; nothing is lost."""
