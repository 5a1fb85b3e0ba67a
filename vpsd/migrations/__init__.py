"""The schema's history. HEAD is the version that this code works with; a test holds it against the files."""

HEAD = "0003"
