"""The dialect of VPS.org: its paths, shapes and words."""
