"""Takes operations up, and holds the rows against the world."""
