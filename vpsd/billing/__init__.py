"""What servers cost, what accounts have, and the rows from which every cent can be recomputed."""
