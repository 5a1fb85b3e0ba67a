"""Plans, operating systems and locations."""
